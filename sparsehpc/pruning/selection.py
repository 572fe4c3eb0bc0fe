"""Which weights go: exact counts, ties by position, the same result for any number of threads.

Everything here is a pure function of tensors. A ``mask`` is True where a weight is *removed*.

Global ranking never holds or sorts all weights. The bit pattern of a float32 without its sign orders like the
number it stands for, so two passes suffice: the first counts the upper 15 bits of all magnitudes, which names the
bin the threshold lies in; the second counts the lower 16 bits inside that bin, tensor by tensor. Both give exact
counts. float16 and bfloat16 convert to float32 without loss, so they rank by the same key.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sparsehpc.core.errors import CellError
from sparsehpc.pruning.patterns import Pattern, removed_count

TieRule = Literal["index", "threshold"]

#: Weights looked at together: small enough for the temporaries to stay in cache. Counting runs in numpy, on one
#: thread: it is bound by memory, and many short parallel regions crawl on a processor that others use too.
CHUNK: Final = 1 << 19

_RANKED: Final = (torch.float32, torch.float16, torch.bfloat16)
_UPPER_BINS: Final = 1 << 15
_LOWER_BITS: Final = 16
_LOWER_BINS: Final = 1 << _LOWER_BITS
_LOWER_MASK: Final = _LOWER_BINS - 1
_MAGNITUDE_MASK: Final = np.int32(0x7FFFFFFF)
_BFLOAT16_MASK: Final = np.int32(0x7FFF)
_INFINITY: Final = 0x7F800000
#: Score of a weight that is zero already: below every other, so that it always counts first.
ALREADY_ZERO: Final = -1.0


def check_weight(weight: torch.Tensor, name: str) -> None:
    """Raise `CellError` naming the tensor if a weight is NaN, which no ranking can place."""
    if bool(torch.isnan(weight).any()):
        count = int(torch.isnan(weight).sum())
        raise CellError(f"{name} holds {count} NaN of {weight.numel()} weights; they cannot be ranked")


def magnitude_keys(weight: torch.Tensor) -> NDArray[np.int32]:
    """Order magnitudes as integers: the float32 bit pattern without its sign, flat.

    0.0 and -0.0 have the key 0. Weights are float32, float16 or bfloat16, of any shape, on any device.
    """
    if weight.dtype not in _RANKED:
        raise TypeError(f"weights of {weight.dtype} cannot be ranked; legal: {', '.join(map(str, _RANKED))}")
    flat = weight.detach().reshape(-1).cpu()
    if weight.dtype == torch.bfloat16:  # the upper half of the float32 it stands for
        return (flat.view(torch.int16).numpy().astype(np.int32) & _BFLOAT16_MASK) << _LOWER_BITS
    return np.bitwise_and(flat.numpy().astype(np.float32, copy=False).view(np.int32), _MAGNITUDE_MASK)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a ranking of many tensors by magnitude is cut.

    Parameters
    ----------
    threshold
        Key (see `magnitude_keys`) of the largest magnitude that goes; -1 where nothing goes.
    boundary
        Position of the tensor in which the ties at the threshold run out: earlier tensors lose all of theirs,
        later ones none.
    boundary_ties
        Ties that go in the boundary tensor, lowest flat index first.
    removed
        Weights that go in all tensors together, existing zeros included.
    """

    threshold: int
    boundary: int
    boundary_ties: int
    removed: int

    def mask(self, weight: torch.Tensor, index: int) -> torch.Tensor:
        """Which weights of the tensor at position ``index`` go (bool, shape of ``weight``)."""
        mask = np.empty(weight.numel(), dtype=np.bool_)
        # Below the threshold everything goes; at it, only up to the boundary.
        limit = np.int32(self.threshold if index < self.boundary else self.threshold - 1)
        position = 0
        for keys in _chunks(weight):
            np.less_equal(keys, limit, out=mask[position : position + keys.size])
            position += keys.size
        if index == self.boundary and self.boundary_ties:
            mask[_first_equal(weight, self.threshold, self.boundary_ties)] = True
        return torch.from_numpy(mask).view(weight.shape).to(weight.device)


def find_cuts(
    names: Sequence[str],
    read: Callable[[str], torch.Tensor],
    counts: Sequence[int],
    tie_rule: TieRule = "index",
) -> list[Cut]:
    """Find, for several counts at once, the cut that removes exactly so many of the smallest magnitudes.

    Parameters
    ----------
    names
        Tensors in module order: ties go by this order, then by flat index.
    read
        Reads one tensor (any shape; float32, float16 or bfloat16); called twice for each name, not kept.
    counts
        How many magnitudes go, each between 0 and the number of all weights.
    tie_rule
        ``index`` removes exactly the count. ``threshold`` removes everything at or below the count-th smallest
        magnitude, more than asked for where it is tied.

    Returns
    -------
    list of Cut
        One for each count, in order.

    Raises
    ------
    CellError
        If a tensor holds NaN.
    """
    upper = np.zeros(_UPPER_BINS, dtype=np.int64)
    for name in names:
        upper += _count_upper(read(name), name)
    below = np.concatenate([[0], np.cumsum(upper)])
    total = int(below[-1])
    for count in counts:
        if not 0 <= count <= total:
            raise ValueError(f"cannot remove {count} of {total} weights")
    # First bin whose cumulated count reaches the wanted one.
    bins = {count: int(np.searchsorted(below[1:], count)) for count in counts if count}
    wanted = sorted(set(bins.values()))
    lower: dict[int, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {index: [] for index in wanted}
    if wanted:
        for name in names:
            for index, histogram in _count_lower(read(name), wanted).items():
                values = np.flatnonzero(histogram)
                lower[index].append((values, histogram[values]))
    return [
        _cut(count, bins[count], int(below[bins[count]]), lower[bins[count]], tie_rule) if count else Cut(-1, 0, 0, 0)
        for count in counts
    ]


def _cut(
    count: int,
    upper: int,
    below: int,
    tensors: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    tie_rule: TieRule,
) -> Cut:
    """Cut inside bin ``upper``, below which ``below`` weights lie; ``tensors`` hold its lower-bit counts."""
    histogram = np.zeros(_LOWER_BINS, dtype=np.int64)
    for values, found in tensors:
        histogram[values] += found
    reached = below + np.cumsum(histogram)
    low = int(np.searchsorted(reached, count))
    threshold = (upper << _LOWER_BITS) | low
    if tie_rule == "threshold":
        return Cut(threshold, len(tensors), 0, int(reached[low]))
    ties = [int(found[values == low].sum()) for values, found in tensors]
    quota = count - (int(reached[low]) - int(histogram[low]))
    reached_ties = list(itertools.accumulate(ties))
    boundary = bisect.bisect_left(reached_ties, quota)
    return Cut(threshold, boundary, quota - (reached_ties[boundary] - ties[boundary]), count)


def _chunks(weight: torch.Tensor) -> Iterator[NDArray[np.int32]]:
    """Keys of a tensor, flat, `CHUNK` at a time."""
    for piece in torch.split(weight.detach().reshape(-1), CHUNK):
        yield magnitude_keys(piece)


def _count_upper(weight: torch.Tensor, name: str) -> NDArray[np.int64]:
    counts = np.zeros(_UPPER_BINS, dtype=np.int64)
    for keys in _chunks(weight):
        keys >>= _LOWER_BITS
        counts += np.bincount(keys.astype(np.intp), minlength=_UPPER_BINS)
    if counts[_INFINITY >> _LOWER_BITS :].any():  # infinities and NaN share these bins
        check_weight(weight, name)
    return counts


def _count_lower(weight: torch.Tensor, upper: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    counts = {index: np.zeros(_LOWER_BINS, dtype=np.int64) for index in upper}
    for keys in _chunks(weight):
        bins = keys >> _LOWER_BITS
        for index, histogram in counts.items():
            inside = keys[np.flatnonzero(bins == np.int32(index))] & _LOWER_MASK
            if inside.size:
                histogram += np.bincount(inside, minlength=_LOWER_BINS)
    return counts


def _first_equal(weight: torch.Tensor, key: int, count: int) -> NDArray[np.int64]:
    """Flat indices of the first ``count`` weights whose key is ``key``."""
    found: list[NDArray[np.int64]] = []
    position, missing = 0, count
    for keys in _chunks(weight):
        indices = np.flatnonzero(keys == np.int32(key))[:missing]
        found.append(indices + position)
        missing -= indices.size
        position += keys.size
        if not missing:
            break
    return np.concatenate(found)


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the ``count`` lowest scores of one tensor, ties by flat index (bool, shape of ``scores``)."""
    return lowest_per_row(scores.reshape(1, -1), count).view(scores.shape)


def lowest_per_row(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the ``count`` lowest scores of every row, ties by column (bool, rows x columns).

    Parameters
    ----------
    scores
        rows x columns, float32 or float64, without NaN.
    count
        Scores that go in each row, at most the number of columns.
    """
    rows, columns = scores.shape
    if not 0 <= count <= columns:
        raise ValueError(f"cannot remove {count} of {columns} in a row")
    if count == 0 or rows == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _kth_smallest(scores, count)
    mask = scores <= threshold
    excess = mask.sum(1) - count
    tied = excess.nonzero().view(-1)
    if tied.numel():  # rows with more scores at the threshold than fit: the first ones go
        equal = scores[tied] == threshold[tied]
        fit = equal.sum(1, keepdim=True) - excess[tied, None]
        mask[tied] &= ~equal | (equal.cumsum(1) <= fit)
    return mask


def _kth_smallest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """k-th smallest of every row (1 for the smallest), rows x 1."""
    if scores.device.type != "cpu":
        return scores.kthvalue(k, dim=1, keepdim=True).values
    # numpy's selection is vectorised, several times faster than torch's on a processor.
    part = np.partition(scores.detach().numpy(), k - 1, axis=1)[:, k - 1 : k]
    return torch.from_numpy(np.ascontiguousarray(part))


def lowest_in_groups(scores: torch.Tensor, keep: int, of: int) -> torch.Tensor:
    """Mask for "keep N of M": all but the ``keep`` highest of every ``of`` neighbours in a row go.

    Ties go by column. The number of columns must be a multiple of ``of``.
    """
    rows, columns = scores.shape
    if columns % of:
        raise ValueError(f"{columns} columns do not divide into groups of {of}")
    lanes = scores.view(rows, columns // of, of).permute(2, 0, 1).contiguous()
    return lowest_lanes(lanes, keep).permute(1, 2, 0).reshape(rows, columns)


def lowest_lanes(lanes: torch.Tensor, keep: int) -> torch.Tensor:
    """Mask of all but the ``keep`` highest along the first dimension, ties by its index (bool, shape of ``lanes``)."""
    # Rank by comparing pairs: an equal score at a lower index ranks lower.
    ranks = torch.zeros(lanes.shape, dtype=torch.int8, device=lanes.device)
    for first, second in itertools.combinations(range(lanes.shape[0]), 2):
        second_lower = lanes[second] < lanes[first]
        ranks[first] += second_lower
        ranks[second] += ~second_lower
    return ranks < lanes.shape[0] - keep


def sum_blocks(scores: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Sum of the scores of every block, float32, (rows of blocks) x (columns of blocks)."""
    blocks = scores.view(scores.shape[0] // rows, rows, scores.shape[1] // columns, columns)
    # Summed in float64 and rounded once, so that the order of summation cannot show.
    return blocks.sum(dim=(1, 3), dtype=torch.float64).float()


def square_blocks(weight: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Sum of squares of every block of a weight, float32."""
    return sum_blocks(weight.detach().double().square(), rows, columns)


def expand_blocks(mask: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Mask of weights from a mask of blocks."""
    if rows * columns == 1:
        return mask
    return mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def with_zeros_first(scores: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Scores in which weights that are zero already rank lowest, so that they count towards the quota."""
    return scores.masked_fill(weight == 0, ALREADY_ZERO)


def remove(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Copy of ``weight`` with zeros where ``mask`` is True; other weights bit for bit as before."""
    return weight.detach().masked_fill(mask, 0)


def choose(
    scores: torch.Tensor,
    weight: torch.Tensor,
    pattern: Pattern,
    sparsity: Decimal | Fraction,
    scope: Literal["row", "matrix"],
) -> torch.Tensor:
    """Mask of the lowest scores in the shape that a pattern asks for.

    Weights that are zero already go first, then by score, then by position. "Keep N of M" ranks inside each group
    whatever the scope. Blocks rank by the sum of the squares of their scores, inside a row of blocks or inside the
    matrix; ``sparsity`` then is the share of blocks.

    Parameters
    ----------
    scores
        Not negative, float32 or float64, shape of ``weight``.
    weight
        out_features x in_features.
    pattern
        Where zeros may lie.
    sparsity
        Share that goes, rounded down to whole weights (or blocks) of a row or of the matrix.
    scope
        What ranks against each other.
    """
    if pattern.kind == "block":
        scores = sum_blocks(scores.double().square(), pattern.rows, pattern.columns)
    else:
        scores = with_zeros_first(scores, weight)
    if pattern.kind == "keep":
        return lowest_in_groups(scores, pattern.keep, pattern.of)
    if scope == "row":
        mask = lowest_per_row(scores, removed_count(sparsity, scores.shape[1]))
    else:
        mask = lowest(scores, removed_count(sparsity, scores.numel()))
    return expand_blocks(mask, pattern.rows, pattern.columns)

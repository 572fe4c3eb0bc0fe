"""Rank the magnitudes of many tensors together and find where a count cuts them, exactly.

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
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sparsehpc.pruning.selection import check_weight

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

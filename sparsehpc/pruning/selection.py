"""Which weights go: exact counts, ties by position, the same result for any number of threads.

Everything here is a pure function of tensors. A ``mask`` is True where a weight is *removed*.
"""

from __future__ import annotations

import itertools
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

import numpy as np
import torch

from sparsehpc.core.errors import CellError
from sparsehpc.pruning.patterns import Pattern, removed_count

#: Score of a weight that is zero already: below every other, so that it always counts first.
ALREADY_ZERO: Final = -1.0


def check_weight(weight: torch.Tensor, name: str) -> None:
    """Raise `CellError` naming the tensor if a weight is NaN, which no ranking can place."""
    if bool(torch.isnan(weight).any()):
        count = int(torch.isnan(weight).sum())
        raise CellError(f"{name} holds {count} NaN of {weight.numel()} weights; they cannot be ranked")


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

"""SparseGPT: remove weights column by column and let the later columns make up for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from sparsehpc.core.errors import UserError
from sparsehpc.pruning.base import METHODS, Method, Options, Pruned, Site
from sparsehpc.pruning.patterns import removed_count

if TYPE_CHECKING:
    from decimal import Decimal
    from fractions import Fraction

    import torch

    from sparsehpc.pruning.patterns import Pattern


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SparseGPTOptions(Options):
    """Options of SparseGPT.

    Parameters
    ----------
    block_columns
        Columns whose mask is chosen together, before any of them is swept.
    damping
        Share of the Hessian's mean diagonal that is added to its diagonal.
    """

    block_columns: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.block_columns < 16 or self.block_columns % 16:
            raise UserError(f"option 'block_columns' of sparsegpt is {self.block_columns}; legal: a multiple of 16")
        if not 0 <= self.damping <= 10:
            raise UserError(f"option 'damping' of sparsegpt is {self.damping:g}; legal: 0 to 10")


@METHODS.register("sparsegpt")
class SparseGPT(Method):
    """Choose and remove weights block by block, correcting the columns that come later.

    Every block of columns loses exactly floor(s n) of its n weights, chosen over all rows together; the published code
    loses one more. Weights of dead input features have the score 0 and go first, but no more of them than the
    quota (the published code zeroes them all). If Cholesky fails, damping rises in recorded steps; the method never
    turns into another one.
    """

    name = "sparsegpt"
    title = "SparseGPT"
    citation = "Frantar, Alistarh: SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023"
    formula = "score = w_ij^2 / U_jj^2 with U^T U = (X^T X + damping)^-1; w_i,j+1: -= (w_ij / U_jj) U_j,j+1:"
    cost = (
        "A Hessian per distinct input (in_features^2 float64), one Cholesky per matrix, and a sweep of about "
        "in_features^2 x out_features multiply-adds."
    )
    advice = "The standard of one-shot pruning; clearly better than Wanda above 50 % and for N:M."
    differs = (
        "Published code removes one weight more per block, zeroes all weights of dead inputs whatever the "
        "quota, and llm-compressor turns into magnitude pruning if Cholesky fails. As there, a zero of the dense "
        "weight may come back where an update gives it weight; the count stays. Damping is a share of the mean "
        "diagonal; there a dead input counts in that mean as 1, whatever the scale of the inputs, here as 0, so that "
        "results do not depend on the scale (without dead inputs the damping is the same). The sweep here needs one "
        "Cholesky and no inverse; its results are the same."
    )
    statistics = ("hessian",)
    patterns = ("unstructured", "2:4", "4:8", "1:4")
    allocations = ("default", "uniform", "owl")
    learned_allocations = ("owl",)
    refits = True
    workspace_bytes_per_weight = 20
    options_type: ClassVar[type[Options]] = SparseGPTOptions
    options: SparseGPTOptions

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Sweep over the columns of one weight."""
        from sparsehpc.pruning.least_squares import factor
        from sparsehpc.pruning.rounding import rounded
        from sparsehpc.pruning.selection import check_weight

        name, sparsity = site.parameter.name, self.sparsity(site)
        check_weight(weight, name)
        if self.pattern.kind == "unstructured" and not removed_count(sparsity, weight.numel()):
            return Pruned(weight.detach().clone())
        found = factor(statistics["hessian"], self.options.damping, name)
        swept = sweep(weight, found.upper, found.dead, self.pattern, sparsity, self.options.block_columns)
        return Pruned(rounded(swept, weight.dtype, f"the sweep over {name}"), found.notes())


#: Columns that are swept one by one before the rest of their block is corrected in one product.
_NARROW = 16


def sweep(
    weight: torch.Tensor,
    upper: torch.Tensor,
    dead: torch.Tensor,
    pattern: Pattern,
    sparsity: Decimal | Fraction,
    block_columns: int,
) -> torch.Tensor:
    """Prune by sweeping over columns; float32, out_features x in_features.

    Instead of correcting all later columns after every block, a block is corrected when its turn comes. With
    W0 the dense weights, Q the pruned ones and E the scaled errors, the published updates say W0 - Q = E U, so
    E = (W0 - Q) R. As the errors of a block are zero before it is swept, its corrected weights are
    W0 + (W0 - Q) R U for what was swept before, where R is the block's columns above the block, and U the inverse of
    its diagonal block.

    Parameters
    ----------
    weight
        out_features x in_features.
    upper
        R of `Factor`, float64.
    dead
        Features without any input.
    pattern, sparsity
        What goes: a share of each block's weights, or "keep N of M" of every row.
    block_columns
        Columns of a block.
    """
    import torch

    # Columns as rows, so that every column is contiguous.
    dense = weight.detach().float().T.contiguous()
    single = upper.float()
    swept, lost = torch.empty_like(dense), torch.empty_like(dense)
    total = dense.shape[0]
    for start in range(0, total, block_columns):
        stop = min(start + block_columns, total)
        eye = torch.eye(stop - start, dtype=upper.dtype, device=upper.device)
        inverse = torch.linalg.solve_triangular(upper[start:stop, start:stop], eye, upper=True).float()
        columns = dense[start:stop].clone()
        if start:
            columns.addmm_(inverse.T, single[:start, start:stop].T @ lost[:start])
        swept[start:stop] = _sweep_block(columns, inverse, dead[start:stop], pattern, sparsity)
        torch.sub(dense[start:stop], swept[start:stop], out=lost[start:stop])
    return swept.T.contiguous()


def _sweep_block(
    columns: torch.Tensor,
    inverse: torch.Tensor,
    dead: torch.Tensor,
    pattern: Pattern,
    sparsity: Decimal | Fraction,
) -> torch.Tensor:
    """Prune one block (columns x rows), changed in place, with its diagonal block of U."""
    import torch

    diagonal = inverse.diagonal()
    removed = torch.zeros_like(columns, dtype=torch.bool)
    if pattern.kind != "keep":
        removed = _choose_block(columns, diagonal, dead, sparsity)
    errors = torch.empty_like(columns)
    total = columns.shape[0]
    for first in range(0, total, _NARROW):
        last = min(first + _NARROW, total)
        for column in range(first, last):
            if pattern.kind == "keep" and column % pattern.of == 0:
                group = slice(column, column + pattern.of)
                removed[group] = _choose_group(columns[group], diagonal[group], dead[group], pattern.keep)
            error = errors[column]
            torch.mul(columns[column], removed[column], out=error)
            error.div_(diagonal[column])
            if column + 1 < last:
                columns[column + 1 : last].addr_(inverse[column, column + 1 : last], error, alpha=-1)
        if last < total:
            columns[last:].addmm_(inverse[first:last, last:].T, errors[first:last], alpha=-1)
    return columns.masked_fill_(removed, 0)


def _scores(columns: torch.Tensor, diagonal: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    from sparsehpc.pruning.selection import with_zeros_first

    scores = (columns / diagonal[:, None]).square().masked_fill_(dead[:, None], 0)
    return with_zeros_first(scores, columns)


def _choose_block(
    columns: torch.Tensor, diagonal: torch.Tensor, dead: torch.Tensor, sparsity: Decimal | Fraction
) -> torch.Tensor:
    """Mask of one block (columns x rows): its lowest scores over all rows, ties by the weight's flat index."""
    from sparsehpc.pruning.selection import lowest

    scores = _scores(columns, diagonal, dead).T.contiguous()
    return lowest(scores, removed_count(sparsity, scores.numel())).T


def _choose_group(columns: torch.Tensor, diagonal: torch.Tensor, dead: torch.Tensor, keep: int) -> torch.Tensor:
    """Mask of one group of columns (columns x rows): all but the highest ``keep`` of every row."""
    from sparsehpc.pruning.selection import lowest_lanes

    return lowest_lanes(_scores(columns, diagonal, dead), keep)

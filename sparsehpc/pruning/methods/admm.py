"""ADMM with ALPS's step control: weights and mask found together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from sparsehpc.core.errors import UserError
from sparsehpc.pruning.base import METHODS, Method, Options, Pruned, Site
from sparsehpc.pruning.patterns import removed_count

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AdmmOptions(Options):
    """Options of ADMM.

    Parameters
    ----------
    rho
        First penalty on the distance between the dense and the sparse copy, relative to a unit diagonal.
    iterations
        Iterations at most; it stops earlier once the mask stays as it is.
    damping
        Share of the Hessian's mean diagonal that is added to its diagonal.
    fit_steps
        Conjugate-gradient steps on the final mask.
    """

    rho: float = 0.1
    iterations: int = 300
    damping: float = 0.01
    fit_steps: int = 10

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rho", 1e-6, 1e6),
            ("iterations", 1, 10_000),
            ("damping", 1e-6, 10),
            ("fit_steps", 0, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"option {name!r} of admm is {getattr(self, name):g}; legal: {low:g} to {high:g}")


#: Share of the mean diagonal that a feature without any input is given.
_DEAD = 1e-12
#: Iterations between two looks at how far the mask moved.
_CHECK_EVERY = 3
#: Mask changes (as a share of the kept weights) and the factor that the penalty then grows by, ALPS's schedule.
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
#: A first penalty under which the mask hardly moves is too large: it is divided by this.
_SHRINK = 5.0
_RHO_MINIMUM, _RHO_MAXIMUM = 1e-6, 1e6
#: After so many iterations a mask that moves by less than the share below is settled.
_SETTLED_AFTER, _SETTLED = 30, 3e-4


@METHODS.register("admm")
class Admm(Method):
    """Alternate between a dense least-squares solution and its projection onto the sparse ones.

    Columns are scaled so that the Hessian has a unit diagonal, in which magnitude is Wanda's score. One eigenvalue
    decomposition serves every penalty. The penalty grows with how much the mask still moves; at the end a few
    conjugate-gradient steps fit the kept weights. Unstructured masks compare the whole matrix.
    """

    name = "admm"
    title = "ADMM (ALPS)"
    citation = (
        "Boža: Fast and Effective Weight Update for Pruned Large Language Models, 2024 (arXiv:2401.02938); "
        "step control: Meng, Behdin, Wang, Mazumder: ALPS: Improved Optimization for Highly Sparse One-Shot Pruning "
        "for Large Language Models, NeurIPS 2024 (arXiv:2406.07831)"
    )
    formula = (
        "min |X (W - W0)|^2 with W = D, D sparse: "
        "W = (H + rho I)^-1 (H W0 - V + rho D), D = P(W + V / rho), V += rho (W - D)"
    )
    cost = (
        "An eigenvalue decomposition per matrix (on one thread, so that masks do not depend on their number), and up "
        "to a few hundred products of in_features^2 x out_features; with refits the slowest here."
    )
    advice = "High sparsity and N:M, where its masks are better than those of a single sweep."
    differs = (
        "The step control is ALPS's: the penalty follows how much the mask still moves. Exactly floor(s n) "
        "weights go; published code rounds. It starts anew whenever a first penalty hardly moves the mask, published "
        "code only where something moved. 4:8 is 4:8 (other public ADMM code silently makes it 2:4). As there, a zero "
        "of the dense weight may come back; the count stays. Each projection breaks ties by index, but tied weights "
        "may change places from one to the next."
    )
    statistics = ("hessian",)
    patterns = ("unstructured", "2:4", "4:8", "1:4")
    allocations = ("default", "uniform", "owl")
    learned_allocations = ("owl",)
    refits = True
    workspace_bytes_per_weight = 56
    options_type: ClassVar[type[Options]] = AdmmOptions
    options: AdmmOptions

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Optimise one weight."""
        from sparsehpc.pruning.least_squares import fit_on_support, prepare
        from sparsehpc.pruning.rounding import rounded
        from sparsehpc.pruning.selection import check_weight, lowest, lowest_in_groups

        name, pattern = site.parameter.name, self.pattern
        check_weight(weight, name)
        count = removed_count(self.sparsity(site), weight.numel())
        if pattern.kind == "unstructured" and not count:
            return Pruned(weight.detach().clone())

        def removed(scores: torch.Tensor) -> torch.Tensor:
            """Mask (in_features x out_features) of what goes, ties by the weight's flat index."""
            rows = scores.T.contiguous()
            mask = lowest_in_groups(rows, pattern.keep, pattern.of) if pattern.kind == "keep" else lowest(rows, count)
            return mask.T

        ready, dead, mean = prepare(statistics["hessian"])
        ready.diagonal().add_(self.options.damping * mean)
        # A weight without input costs next to nothing, so that it goes first.
        ready.diagonal()[dead] = _DEAD * mean
        scale = ready.diagonal().sqrt()
        gram = ready / scale[:, None] / scale
        dense = weight.detach().float().T * scale[:, None].float()
        kept, guess, notes = alternate(gram, dense, removed, self.options.rho, self.options.iterations)
        fit = fit_on_support(gram.float(), dense, kept, guess, self.options.fit_steps, 1e-6)
        pruned = (fit.solution / scale[:, None].float()).T.contiguous()
        return Pruned(rounded(pruned, weight.dtype, f"admm on {name}"), notes)


def alternate(
    gram: torch.Tensor,
    dense: torch.Tensor,
    removed: Callable[[torch.Tensor], torch.Tensor],
    rho: float,
    iterations: int,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Run ADMM until the mask settles.

    Parameters
    ----------
    gram
        G with a unit diagonal, in_features x in_features, float64.
    dense
        B0, in_features x out_features, float32.
    removed
        Mask of what the projection removes, from squares of the candidates.
    rho, iterations
        As in `AdmmOptions`.

    Returns
    -------
    kept, guess, notes
        Final mask (True where a weight stays), the weights there, and the number of iterations.
    """
    import torch

    # Several threads give other eigenvectors, and masks that follow from them; they gain little here.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        values, vectors = torch.linalg.eigh(gram)
    finally:
        torch.set_num_threads(threads)
    basis, values = vectors.float(), values.float()[:, None]
    target = gram.float() @ dense

    def solve(right: torch.Tensor) -> torch.Tensor:
        solved: torch.Tensor = basis @ ((basis.T @ right) / (values + rho))
        return solved

    mask = removed(dense.square())
    first = dense.masked_fill(mask, 0)
    sparse, dual, before = first, torch.zeros_like(dense), mask
    kept_total = max(int((~mask).sum()), 1)
    moved_once = False
    solution = dense
    iteration = 0
    for iteration in range(1, iterations + 1):
        solution = solve(target - dual + rho * sparse)
        sparse = solution + dual / rho
        mask = removed(sparse.square())
        sparse = sparse.masked_fill(mask, 0)
        dual = dual + rho * (solution - sparse)
        if iteration % _CHECK_EVERY:
            continue
        change = int((mask != before).sum())
        before = mask
        share = change / kept_total
        if share > _GROWTH[1][0]:
            moved_once = True
        if moved_once:
            if not change or (iteration >= _SETTLED_AFTER and share < _SETTLED):
                break
            rho = min(rho * next(factor for limit, factor in _GROWTH if share > limit), _RHO_MAXIMUM)
        elif rho / _SHRINK < _RHO_MINIMUM:
            break
        else:
            rho /= _SHRINK
            solution, sparse, dual, before = dense, first, torch.zeros_like(dense), removed(dense.square())
    mask = removed(solution.square())
    return ~mask, solution.masked_fill(mask, 0), {"iterations": iteration}

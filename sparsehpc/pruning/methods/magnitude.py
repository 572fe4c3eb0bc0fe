"""Global magnitude pruning: the smallest weights of the whole model go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from sparsehpc.pruning.base import METHODS, Method, Options, Pruned, Site
from sparsehpc.pruning.patterns import removed_count

if TYPE_CHECKING:
    import torch

    from sparsehpc.models.structure import Parameter
    from sparsehpc.pruning.cuts import Cut
    from sparsehpc.pruning.structured import Units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MagnitudeOptions(Options):
    """Options of global magnitude pruning.

    Parameters
    ----------
    tie_rule
        ``index`` removes exactly the requested count, ties by module order and flat index. ``threshold`` removes
        everything at or below the k-th smallest magnitude, so more than requested where it is tied.
    """

    tie_rule: Literal["index", "threshold"] = "index"


@METHODS.register("magnitude")
class Magnitude(Method):
    """Rank all target weights of the model by abs(w) and remove the smallest.

    Blocks are ranked by the sum of their squares, across the whole model. "Keep N of M" ranks inside each group, so
    no model-wide threshold exists there; heads and neurons rank inside their layer by the sum of squares of all their
    weights.
    """

    name = "magnitude"
    title = "Magnitude (global)"
    citation = (
        "Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015"
    )
    formula = "score = |w|; the floor(s n) smallest of all n target weights of the model go"
    scope = "model"
    cost = "Two passes over the weights, some nanoseconds a weight; no calibration, no extra copy of the model."
    advice = (
        "The baseline of every study. Harmless to some tens of percent on large models, poor on small ones; "
        "layers with small weights lose most."
    )
    differs = (
        "Most published code compares inside each matrix and still calls it magnitude pruning; its rule of "
        "removing everything at or below the k-th value removes more wherever weights are tied."
    )
    patterns = ("unstructured", "2:4", "4:8", "1:4", "block8x8", "block16x16", "heads", "neurons")
    allocations = ("default", "global")
    refits = True
    options_type: ClassVar[type[Options]] = MagnitudeOptions
    options: MagnitudeOptions

    _cut: Cut | None = None

    @classmethod
    def survey_all(
        cls, methods: Sequence[Method], parameters: Sequence[Parameter], read: Callable[[str], torch.Tensor]
    ) -> None:
        """Find the thresholds of all combinations in two passes for each pattern and tie rule."""
        from sparsehpc.pruning.cuts import find_cuts
        from sparsehpc.pruning.selection import check_weight, square_blocks

        groups: dict[tuple[str, Literal["index", "threshold"]], list[Magnitude]] = {}
        for method in methods:
            if isinstance(method, Magnitude) and method.pattern.kind in ("unstructured", "block"):
                groups.setdefault((method.pattern.name, method.options.tie_rule), []).append(method)
        for (_, tie_rule), group in groups.items():
            pattern = group[0].pattern
            units = sum(parameter.numel for parameter in parameters) // (pattern.rows * pattern.columns)

            def ranked(name: str, rows: int = pattern.rows, columns: int = pattern.columns) -> torch.Tensor:
                weight = read(name)
                if rows * columns == 1:
                    return weight
                check_weight(weight, name)
                return square_blocks(weight, rows, columns)

            counts = [removed_count(method.pruning.fraction, units) for method in group]
            cuts = find_cuts([parameter.name for parameter in parameters], ranked, counts, tie_rule)
            for method, cut in zip(group, cuts, strict=True):
                method._cut = cut

    def survey(self, parameters: Sequence[Parameter], read: Callable[[str], torch.Tensor]) -> None:
        """Find the threshold of this combination alone."""
        self.survey_all([self], parameters, read)

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Remove what lies below the model's threshold."""
        from sparsehpc.pruning.selection import check_weight, expand_blocks, lowest_in_groups, remove, square_blocks

        pattern = self.pattern
        if pattern.kind == "keep":
            check_weight(weight, site.parameter.name)
            return Pruned(remove(weight, lowest_in_groups(weight.abs().float(), pattern.keep, pattern.of)))
        if self._cut is None:
            raise RuntimeError("magnitude ranks the whole model: survey it before pruning a weight")
        if pattern.kind == "block":
            blocks = self._cut.mask(square_blocks(weight, pattern.rows, pattern.columns), site.index)
            return Pruned(remove(weight, expand_blocks(blocks, pattern.rows, pattern.columns)))
        return Pruned(remove(weight, self._cut.mask(weight, site.index)))

    def unit_scores(
        self,
        units: Units,
        weights: Mapping[str, torch.Tensor],
        statistics: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> torch.Tensor:
        """Sum of squares of all weights of every unit."""
        import torch

        from sparsehpc.pruning.structured import unit_sums

        parts = [unit_sums(weights[p.parameter.name].detach().double().square(), p, units.count) for p in units.parts]
        return torch.stack(parts).sum(0)

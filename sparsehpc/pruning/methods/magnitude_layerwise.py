"""Magnitude pruning of every matrix by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsehpc.pruning.base import METHODS, Method, Pruned, Site
from sparsehpc.pruning.patterns import removed_count

if TYPE_CHECKING:
    import torch


@METHODS.register("magnitude-layerwise")
class MagnitudeLayerwise(Method):
    """Remove the same share of every matrix: its smallest abs(w), or its blocks of the smallest sum of squares."""

    name = "magnitude-layerwise"
    title = "Magnitude (per matrix)"
    citation = (
        "Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015"
    )
    formula = "score = |w|; the floor(s n) smallest of the n weights of each matrix go"
    cost = "One pass over each matrix."
    advice = "What many papers call magnitude pruning: compare with it when you compare with their tables."
    differs = (
        "Published code takes a threshold at sorted index k and removes everything at or below it: at least "
        "one weight more, and an error at 100 %. Here exactly floor(s n) go, ties by index."
    )
    patterns = ("unstructured", "block8x8", "block16x16")
    allocations = ("default", "uniform", "owl")
    learned_allocations = ("owl",)
    refits = True

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Remove the smallest weights of one matrix."""
        from sparsehpc.pruning.cuts import find_cuts
        from sparsehpc.pruning.selection import check_weight, expand_blocks, remove, square_blocks

        name, pattern = site.parameter.name, self.pattern
        check_weight(weight, name)
        ranked = square_blocks(weight, pattern.rows, pattern.columns) if pattern.kind == "block" else weight
        count = removed_count(self.sparsity(site), ranked.numel())
        mask = find_cuts([name], lambda _: ranked, [count])[0].mask(ranked, 0)
        return Pruned(remove(weight, expand_blocks(mask, pattern.rows, pattern.columns)))

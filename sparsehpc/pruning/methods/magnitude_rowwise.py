"""Magnitude pruning of every output row by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsehpc.pruning.base import METHODS, Method, Pruned, Site
from sparsehpc.pruning.patterns import removed_count

if TYPE_CHECKING:
    import torch


@METHODS.register("magnitude-rowwise")
class MagnitudeRowwise(Method):
    """Remove the smallest abs(w) of every output row: the comparison group of Wanda without its input norms."""

    name = "magnitude-rowwise"
    title = "Magnitude (per output row)"
    citation = "Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024"
    formula = "score = |w|; the floor(s n) smallest of the n weights of each output row go"
    scope = "row"
    cost = "One selection per row of each matrix."
    advice = "To tell what Wanda gains by its comparison group from what it gains by its input norms."
    differs = "Nothing: an ablation of the Wanda paper."
    allocations = ("default", "uniform", "owl")
    learned_allocations = ("owl",)
    refits = True

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Remove the smallest weights of each row."""
        from sparsehpc.pruning.selection import check_weight, lowest_per_row, remove

        check_weight(weight, site.parameter.name)
        count = removed_count(self.sparsity(site), weight.shape[1])
        return Pruned(remove(weight, lowest_per_row(weight.detach().abs().float(), count)))

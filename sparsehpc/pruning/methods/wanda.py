"""Wanda: weights times the norm of their inputs, compared inside each output row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsehpc.pruning.base import METHODS, Method, Pruned, Site

if TYPE_CHECKING:
    import torch

    from sparsehpc.pruning.structured import Units


@METHODS.register("wanda")
class Wanda(Method):
    """Remove the lowest abs(w) times norm(x) of every output row; no weight is updated.

    The published code divides the squared norms by the number of sequences; that factor is the same for all weights
    and left out here. Weights of dead input features have the score 0 and go first.

    Heads and neurons rank inside their layer by the sum of the scores of the weights that read them (called Wanda-sp
    in the code of FLAP).
    """

    name = "wanda"
    title = "Wanda"
    citation = "Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024"
    formula = "score = |w_ij| ||x_j||_2; the floor(s n) lowest of the n weights of each output row go"
    scope = "row"
    cost = (
        "Two forward passes of the calibration text through each layer, and one selection per row; no "
        "inverse, no update."
    )
    advice = (
        "The first calibrated method to try: nearly free; behind SparseGPT on text like that of calibration. Add refit "
        "where weights may change."
    )
    differs = (
        "Published code counts the weights it removes in N:M and divides squared norms by sequences, which "
        "changes no mask. Its 'variant' that searches a threshold per row is not offered."
    )
    statistics = ("input_norm",)
    patterns = ("unstructured", "2:4", "4:8", "1:4", "block8x8", "block16x16", "heads", "neurons")
    allocations = ("default", "uniform", "owl", "global")
    learned_allocations = ("owl", "global")
    refits = True

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Remove the lowest scores of each row."""
        from sparsehpc.pruning.selection import check_weight, choose, remove

        check_weight(weight, site.parameter.name)
        scores = weight.detach().float().abs() * statistics["input_norm"].float()
        return Pruned(remove(weight, choose(scores, weight, self.pattern, self.sparsity(site), "row")))

    def unit_scores(
        self,
        units: Units,
        weights: Mapping[str, torch.Tensor],
        statistics: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> torch.Tensor:
        """Sum of abs(w) times norm(x) over the weights that read each unit."""
        from sparsehpc.pruning.structured import unit_sums

        name = units.reader.parameter.name
        scores = weights[name].detach().double().abs() * statistics[name]["input_norm"]
        return unit_sums(scores, units.reader, units.count)

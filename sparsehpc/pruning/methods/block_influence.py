"""Block influence: leave out the decoder layers that change their input least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sparsehpc.pruning.base import METHODS, DenseSurvey, Method, Pruned, Site, Statistic
from sparsehpc.pruning.patterns import removed_count

if TYPE_CHECKING:
    import torch

    from sparsehpc.models.structure import Parameter


@METHODS.register("block-influence")
class BlockInfluence(Method):
    """Remove the decoder layers whose output points where their input did.

    A removed layer's weights and biases are zero, so that only its residual connection is left: in a decoder with
    norms in front of attention and MLP that is the same as leaving it out.
    """

    name = "block-influence"
    title = "Block influence (ShortGPT)"
    citation = "Men et al.: ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024"
    formula = "score of a layer = 1 - mean over tokens of cos(h_in, h_out); the floor(s L) lowest of L layers go"
    scope = "model"
    cost = "One walk of the dense model over the calibration text; the pruned model is faster on any hardware."
    advice = "Deep models at 10 to 25 %; small models fall apart early."
    differs = (
        "Influence is measured once on the dense model, as in the paper; ties go by layer. Models that normalise "
        "behind the residual connection (OPT-350m) are refused: there an empty layer is not the same as none."
    )
    patterns = ("layers",)

    _gone: frozenset[int] | None = None

    @classmethod
    def needs_calibration(cls, allocation: str = "default", refit: bool = False) -> bool:
        """Influence comes from text."""
        return True

    @property
    def dense_statistics(self) -> tuple[Statistic, ...]:
        """No statistics of inputs: the walk itself shows what layers do."""
        return ()

    def learn(self, parameters: Sequence[Parameter], read: Callable[[str], torch.Tensor], survey: DenseSurvey) -> None:
        """Choose the layers."""
        layers = sorted(survey.influence, key=lambda layer: (survey.influence[layer], layer))
        self._gone = frozenset(layers[: removed_count(self.pruning.fraction, len(layers))])
        self.bias_changes = {p.name: None for p in parameters if p.layer in self._gone}

    def prune_units(
        self,
        weights: Mapping[str, torch.Tensor],
        sites: Sequence[Site],
        statistics: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> dict[str, Pruned]:
        """Empty the weights of a layer that goes."""
        import torch

        from sparsehpc.pruning.selection import check_weight

        if self._gone is None:
            raise RuntimeError("block-influence ranks the whole model: let it learn before pruning")
        results = {}
        for site in sites:
            weight = weights[site.parameter.name].detach()
            check_weight(weight, site.parameter.name)
            gone = site.parameter.layer in self._gone
            results[site.parameter.name] = Pruned(torch.zeros_like(weight) if gone else weight.clone())
        return results

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Never called: layers are pruned as a whole."""
        raise NotImplementedError("block-influence prunes whole layers")

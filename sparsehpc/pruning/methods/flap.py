"""FLAP: structured pruning by how much inputs fluctuate; what is constant moves into the bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from sparsehpc.pruning.base import METHODS, DenseSurvey, Method, Options, Pruned, Site, Statistic
from sparsehpc.pruning.patterns import removed_count

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sparsehpc.core.spec import Pruning
    from sparsehpc.models.structure import Parameter


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FlapOptions(Options):
    """Options of FLAP.

    Parameters
    ----------
    compensate
        Add what the removed inputs gave on average to the bias of the matrix that read them.
    """

    compensate: bool = True


@METHODS.register("flap")
class Flap(Method):
    """Remove the heads or neurons whose removal changes outputs least once their mean is kept as a bias.

    Scores are standardised inside each layer and ranked across the model, so that layers lose unequally; at least one
    unit stays in every layer. All statistics are those of the dense model. A bias that the model did not have counts.
    """

    name = "flap"
    title = "FLAP"
    citation = (
        "An, Zhao, Yu, Tang, Wang: Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024"
    )
    formula = "score = z-score in its layer of sum_j Var(x_j) ||W_:j||_2^2 over the unit; b += sum_j W_:j mean(x_j)"
    scope = "model"
    whole_model = True
    cost = "One walk of the dense model over the calibration text, and one look at the matrices that read the units."
    advice = "Structured pruning without retraining; the biases give back what the removed units added on average."
    differs = (
        "Published code updates its mean in place before it uses it, so its variance is not Welford's, hard-codes a "
        "head size of 128 and the price of a head, squares the score of attention, overwrites a bias that is there, "
        "cuts heads and neurons together, and calibrates on WikiText-2, the text it is then judged by; here "
        "variances are exact, biases add, and one pattern is cut at a time, key/value heads with all their queries."
    )
    patterns = ("heads", "neurons")
    options_type: ClassVar[type[Options]] = FlapOptions
    options: FlapOptions

    _gone: Mapping[int, NDArray[np.bool_]] | None = None

    @classmethod
    def needs_calibration(cls, allocation: str = "default", refit: bool = False) -> bool:
        """Fluctuations come from text."""
        return True

    @classmethod
    def unsupported(cls, pruning: Pruning, parameters: Sequence[Parameter]) -> str | None:
        """Add to the general reasons that one unit stays in every layer."""
        from sparsehpc.pruning.structured import no_choice, units_by_layer

        if (reason := super().unsupported(pruning, parameters)) is not None:
            return reason
        layers = units_by_layer(parameters, pruning.pattern)
        total = sum(units.count for units in layers)
        if (reason := no_choice(pruning, total, "the model")) is not None:
            return reason
        if (count := removed_count(pruning.fraction, total)) > total - len(layers):
            return f"{count} of {total} {pruning.pattern} would go, which leaves none in some of {len(layers)} layers"
        return None

    @property
    def dense_statistics(self) -> tuple[Statistic, ...]:
        """Mean and variance of the inputs."""
        return ("input_mean", "input_variance")

    def learn(self, parameters: Sequence[Parameter], read: Callable[[str], torch.Tensor], survey: DenseSurvey) -> None:
        """Choose the units of the whole model and work out what their means gave."""
        import torch

        from sparsehpc.pruning.rounding import rounded
        from sparsehpc.pruning.selection import check_weight
        from sparsehpc.pruning.structured import lowest_units, unit_sums, units_by_layer

        layers = units_by_layer(parameters, self.pattern.name)
        scores = []
        for units in layers:
            name = units.reader.parameter.name
            weight = read(name).detach().double()
            check_weight(weight, name)
            raw = unit_sums(weight.square() * survey.inputs[name]["input_variance"], units.reader, units.count)
            spread = raw.std(correction=0)
            scores.append((raw - raw.mean()) / spread if float(spread) > 0 else torch.zeros_like(raw))
        count = removed_count(self.pruning.fraction, sum(units.count for units in layers))
        chosen = lowest_units(scores, count)
        self._gone = {units.layer: gone for units, gone in zip(layers, chosen, strict=True)}
        self.bias_changes = {}
        for units, gone in zip(layers, chosen, strict=True):
            if self.options.compensate and gone.any():
                name = units.reader.parameter.name
                weight = read(name)
                columns = torch.from_numpy(gone[units.reader.owner]).to(weight.device)
                mean = survey.inputs[name]["input_mean"].masked_fill(~columns, 0)
                gave = weight.detach().double() @ mean
                self.bias_changes[name] = rounded(gave, weight.dtype, f"the compensation of {name}")

    def prune_units(
        self,
        weights: Mapping[str, torch.Tensor],
        sites: Sequence[Site],
        statistics: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> dict[str, Pruned]:
        """Remove the chosen units of one layer."""
        from sparsehpc.pruning.selection import check_weight
        from sparsehpc.pruning.structured import remove_units, units_by_layer

        if self._gone is None:
            raise RuntimeError("flap ranks the whole model: let it learn before pruning")
        for name, weight in weights.items():
            check_weight(weight, name)
        results = {name: Pruned(weight.detach().clone()) for name, weight in weights.items()}
        for units in units_by_layer([site.parameter for site in sites], self.pattern.name):
            results |= remove_units(units, weights, self._gone[units.layer])
        return results

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Never called: units are pruned by section."""
        raise NotImplementedError("flap prunes whole units of a section")

"""How the budget is spread over the model. Needs no torch to be checked at plan time.

- ``default``: the method's own rule (the whole model for ``magnitude``, every matrix alike for the others).
- ``uniform``: every matrix alike.
- ``owl``: decoder layers with more outliers lose less (Yin et al., Outlier Weighed Layerwise Sparsity, ICML 2024).
- ``global``: scores are ranked across the whole model, and every matrix loses the share that falls below the cut.

``owl`` and ``global`` look at Wanda's score with the input norms of the *dense* model, which a walk over the
calibration text finds before anything is pruned. They give a share per matrix; the method then rounds by its own
rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from sparsehpc.core.errors import CellError
from sparsehpc.core.spec import DEFAULT_TARGETS
from sparsehpc.pruning.patterns import parse_pattern, removed_count

if TYPE_CHECKING:
    import torch

    from sparsehpc.core.spec import Pruning
    from sparsehpc.models.structure import Parameter

#: A weight is an outlier if its score exceeds this many times the mean score of its decoder layer.
OUTLIER_FACTOR: Final = 5.0
#: Layers end at most twice this far apart in sparsity, and no layer further than that from the mean.
SPREAD: Final = Fraction(8, 100)


def unsupported(pruning: Pruning) -> str | None:
    """Why an allocation cannot be, or None where it can. Asked at plan time."""
    if pruning.allocation in ("default", "uniform"):
        return None
    if parse_pattern(pruning.pattern).fixed_sparsity is not None:
        return (
            f"allocation {pruning.allocation} needs a pattern of free sparsity; {pruning.pattern} fixes it everywhere"
        )
    outside = sorted(set(pruning.targets) - set(DEFAULT_TARGETS))
    if outside:
        return f"allocation {pruning.allocation} looks at decoder layers alone, not at {', '.join(outside)}"
    if pruning.allocation == "owl":
        sparsity = Fraction(pruning.fraction)
        low, high = 2 * SPREAD, 1 - 2 * SPREAD
        if not low <= sparsity <= high:
            need = "more than all" if sparsity > high else "less than none"
            return (
                f"allocation owl moves a layer by up to {float(2 * SPREAD):.0%}, so at sparsity {pruning.sparsity} it "
                f"could need {need} of a layer; legal: {float(low):g} to {float(high):g}"
            )
    return None


def budgets(
    pruning: Pruning,
    parameters: Sequence[Parameter],
    read: Callable[[str], torch.Tensor],
    input_norms: Mapping[str, torch.Tensor],
) -> dict[str, Fraction]:
    """Share of every weight that goes, by name, under ``owl`` or ``global``.

    Parameters
    ----------
    pruning
        The combination.
    parameters
        Prunable parameters in module order.
    read
        Reads one weight; it is not kept.
    input_norms
        By weight name: ``input_norm`` of the dense model's calibration stream.
    """
    for parameter in parameters:
        if parameter.name not in input_norms:
            raise CellError(f"allocation {pruning.allocation} has no input norms of {parameter.name}")

    def scores(name: str) -> torch.Tensor:
        return read(name).detach().float().abs() * input_norms[name].float()

    if pruning.allocation == "owl":
        return owl_budgets(parameters, outlier_ratios(parameters, scores), Fraction(pruning.fraction))
    return global_budgets(parameters, scores, Fraction(pruning.fraction))


def outlier_ratios(parameters: Sequence[Parameter], scores: Callable[[str], torch.Tensor]) -> dict[int, float]:
    """Share of every decoder layer's scores above `OUTLIER_FACTOR` times their mean over the layer.

    The published code takes the mean over all matrices of a layer together, as here; the paper's text can be read
    otherwise.
    """
    ratios = {}
    for layer, names in _by_layer(parameters).items():
        total = sum(float(scores(p.name).double().sum()) for p in names)
        numel = sum(p.numel for p in names)
        limit = OUTLIER_FACTOR * total / numel
        if not math.isfinite(limit):
            raise CellError(f"layer {layer}: scores of the allocation hold NaN or Inf")
        ratios[layer] = sum(int((scores(p.name) > limit).sum()) for p in names) / numel
    return ratios


def owl_budgets(
    parameters: Sequence[Parameter], ratios: Mapping[int, float], sparsity: Fraction
) -> dict[str, Fraction]:
    """Share of every matrix that goes: exact quotas of whole weights per layer that sum to the model's.

    A layer's distance from the lowest ratio, scaled to 0 .. 2 `SPREAD`, is what it keeps more; the mean over layers,
    weighted by their size, is taken off again. Where all ratios are equal, all layers are treated alike.
    Matrices outside decoder layers get the plain share.
    """
    layers = _by_layer(parameters)
    sizes = {layer: sum(p.numel for p in names) for layer, names in layers.items()}
    exact = {layer: Fraction(ratios[layer]) for layer in layers}
    low, high = min(exact.values(), default=Fraction(0)), max(exact.values(), default=Fraction(0))
    gain = {
        layer: 2 * SPREAD * (ratio - low) / (high - low) if high > low else Fraction(0)
        for layer, ratio in exact.items()
    }
    total = sum(sizes.values())
    mean = sum((gain[layer] * size for layer, size in sizes.items()), Fraction(0)) / max(total, 1)
    wanted = {layer: (sparsity - gain[layer] + mean) * size for layer, size in sizes.items()}
    quotas = whole(wanted, removed_count(sparsity, total))
    shares = {layer: Fraction(quotas[layer], size) for layer, size in sizes.items()}
    return {p.name: sparsity if p.layer is None else shares[p.layer] for p in parameters}


def whole(wanted: Mapping[int, Fraction], total: int) -> dict[int, int]:
    """Round to whole numbers that sum to ``total``: the largest remainders go up, the first where they are equal."""
    quotas = {key: math.floor(value) for key, value in wanted.items()}
    missing = total - sum(quotas.values())
    order = sorted(wanted, key=lambda key: (quotas[key] - wanted[key], key))
    for key in order[:missing]:
        quotas[key] += 1
    return quotas


def global_budgets(
    parameters: Sequence[Parameter], scores: Callable[[str], torch.Tensor], sparsity: Fraction
) -> dict[str, Fraction]:
    """Share of every matrix among the lowest ``sparsity`` of all scores of the model."""
    from sparsehpc.pruning.cuts import find_cuts

    names = [p.name for p in parameters]
    count = removed_count(sparsity, sum(p.numel for p in parameters))
    cut = find_cuts(names, scores, [count])[0]
    return {p.name: Fraction(int(cut.mask(scores(p.name), index).sum()), p.numel) for index, p in enumerate(parameters)}


def _by_layer(parameters: Sequence[Parameter]) -> dict[int, list[Parameter]]:
    layers: dict[int, list[Parameter]] = {}
    for parameter in parameters:
        if parameter.layer is not None:
            layers.setdefault(parameter.layer, []).append(parameter)
    return layers

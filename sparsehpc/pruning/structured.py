"""Structured patterns: whole heads, neurons or layers. Needs no torch to be checked at plan time.

What goes together is a *unit*: under ``heads`` a key/value head with all the query heads that share it, under
``neurons`` one channel between the MLP's matrices, under ``layers`` a decoder layer. The matrix that reads a unit (the
last of its group: ``o_proj``, ``fc2``, ...) loses the unit's columns, those that write it lose its rows; biases of what
is gone then reach nothing. Zeros stay in place here, so that every storage format can hold the result; a format that
leaves out empty rows and columns (``compact``) and `sparsehpc.pruning.shrink` make the model really smaller.

``sparsity`` is the share of units that go: of every layer's heads or neurons (``flap``: of the whole model's), or of
the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsehpc.pruning.patterns import removed_count
from sparsehpc.pruning.types import Pruned

if TYPE_CHECKING:
    import torch

    from sparsehpc.core.spec import Pruning
    from sparsehpc.models.structure import Parameter
    from sparsehpc.pruning.types import Site

#: Group of parameters that a pattern cuts.
GROUPS = {"heads": ("attention",), "neurons": ("mlp",), "layers": ("attention", "mlp")}


@dataclass(frozen=True, slots=True)
class Part:
    """How one matrix takes part in the units of its layer.

    Parameters
    ----------
    parameter
        The weight.
    axis
        0 if its rows (outputs) belong to units, 1 if its columns (inputs) do.
    owner
        Unit of every row or column.
    """

    parameter: Parameter
    axis: int
    owner: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Units:
    """Units of one decoder layer.

    Parameters
    ----------
    layer
        Decoder layer.
    count
        Number of units.
    parts
        Matrices that hold them, the reading one last.
    """

    layer: int
    count: int
    parts: tuple[Part, ...]

    @property
    def reader(self) -> Part:
        """The matrix whose columns belong to the units."""
        return self.parts[-1]


def units_by_layer(parameters: Sequence[Parameter], pattern: str) -> list[Units]:
    """Units of every decoder layer that the parameters hold whole, in order; ``pattern`` is heads or neurons."""
    (group,) = GROUPS[pattern]
    layers: dict[int, list[Parameter]] = {}
    for parameter in parameters:
        if parameter.layer is not None and parameter.group == group and parameter.kind == "linear":
            layers.setdefault(parameter.layer, []).append(parameter)
    make = _heads if pattern == "heads" else _neurons
    return [make(layer, layers[layer]) for layer in sorted(layers)]


def _neurons(layer: int, linears: Sequence[Parameter]) -> Units:
    *writers, reader = linears
    count = reader.shape[1]
    own = np.arange(count)
    return Units(layer, count, (*(Part(p, 0, own) for p in writers), Part(reader, 1, own)))


def _heads(layer: int, linears: Sequence[Parameter]) -> Units:
    *writers, reader = linears
    size = reader.head_size
    query_heads = reader.shape[1] // size
    if len(writers) == 1:  # fused: query, key and value of one head after another
        count = query_heads
        parts = [Part(writers[0], 0, np.repeat(np.arange(count), 3 * size))]
    else:
        count = min(p.shape[0] for p in writers) // size
        parts = [Part(p, 0, np.repeat(np.arange(count), p.shape[0] // count)) for p in writers]
    return Units(layer, count, (*parts, Part(reader, 1, np.repeat(np.arange(count), reader.shape[1] // count))))


def unsupported(pruning: Pruning, parameters: Sequence[Parameter], *, whole_model: bool = False) -> str | None:
    """Why a structured combination cannot be, or None where it can. Asked at plan time."""
    groups = GROUPS[pruning.pattern]
    missing = [group for group in groups if group not in pruning.targets]
    if missing:
        return f"pattern {pruning.pattern} cuts {' and '.join(groups)}; targets lack {', '.join(missing)}"
    if pruning.allocation != "default":
        return (
            f"pattern {pruning.pattern} takes whole {pruning.pattern}; allocation {pruning.allocation} spreads weights"
        )
    if pruning.pattern == "layers":
        if any(p.post_norm for p in parameters):
            return (
                "pattern layers leaves residual connections alone, but this model normalises behind them, so that "
                "an empty layer is not the same as none"
            )
        count = len({p.layer for p in parameters if p.layer is not None})
        return no_choice(pruning, count, "the model")
    for units in units_by_layer(parameters, pruning.pattern):
        if pruning.pattern == "heads" and not units.reader.parameter.head_size:
            return f"{units.reader.parameter.name}: this family does not say how large a head is"
        if not whole_model and (reason := no_choice(pruning, units.count, f"layer {units.layer}")) is not None:
            return reason
    return None


def no_choice(pruning: Pruning, count: int, owner: str) -> str | None:
    """Why all or none of the units would go, so that what was asked for would not be measured, or None."""
    gone = removed_count(pruning.fraction, count)
    if gone == 0 and pruning.fraction > 0:
        return f"sparsity {pruning.sparsity} takes none of the {count} {pruning.pattern} of {owner}"
    if gone == count:
        return f"sparsity {pruning.sparsity} leaves none of the {count} {pruning.pattern} of {owner}"
    return None


def prune_units(
    pruning: Pruning,
    weights: Mapping[str, torch.Tensor],
    sites: Sequence[Site],
    score: Callable[[Units], torch.Tensor],
) -> dict[str, Pruned]:
    """Remove the units of one decoder layer that score lowest, ties by index; other weights stay as they are.

    Parameters
    ----------
    pruning
        The combination.
    weights
        Dense weights of the layer by name.
    sites
        Where they are.
    score
        Importance of every unit of a layer, (count,).
    """
    from sparsehpc.pruning.selection import check_weight, lowest

    for name, weight in weights.items():
        check_weight(weight, name)
    found = units_by_layer([site.parameter for site in sites], pruning.pattern)
    results = {name: Pruned(weight.detach().clone()) for name, weight in weights.items()}
    for units in found:
        scores = score(units)
        gone = lowest(scores[None], removed_count(pruning.fraction, units.count))[0]
        results |= remove_units(units, weights, gone.cpu().numpy())
    return results


def remove_units(units: Units, weights: Mapping[str, torch.Tensor], gone: NDArray[np.bool_]) -> dict[str, Pruned]:
    """Zero the rows and columns of units (``gone``: one flag per unit)."""
    import torch

    results = {}
    for part in units.parts:
        weight = weights[part.parameter.name]
        mask = torch.from_numpy(gone[part.owner]).to(weight.device)
        results[part.parameter.name] = Pruned(
            weight.detach().masked_fill(mask[:, None] if part.axis == 0 else mask[None, :], 0)
        )
    return results


def lowest_units(scores: Sequence[torch.Tensor], count: int) -> list[NDArray[np.bool_]]:
    """Flags of the ``count`` lowest of all layers' units, ties by layer and index; one unit of each layer stays."""
    order = sorted(
        (score, layer, unit) for layer, values in enumerate(scores) for unit, score in enumerate(values.tolist())
    )
    gone = [np.zeros(len(values), dtype=np.bool_) for values in scores]
    left = [len(values) for values in scores]
    for _, layer, unit in order:
        if not count:
            break
        if left[layer] > 1:
            gone[layer][unit] = True
            left[layer] -= 1
            count -= 1
    if count:
        raise ValueError(f"{count} more units would have to go than can")
    return gone


def unit_sums(values: torch.Tensor, part: Part, count: int) -> torch.Tensor:
    """Sum of values (one per weight of a part's matrix) over every unit, float64, (count,)."""
    import torch

    along = values.sum(1 - part.axis, dtype=torch.float64)
    owner = torch.from_numpy(part.owner).to(along.device)
    return torch.zeros(count, dtype=torch.float64, device=along.device).index_add_(0, owner, along)

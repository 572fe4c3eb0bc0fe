"""A really smaller model from one whose heads, neurons or layers are zero: fewer rows, columns and layers, one config.

The result is a plain checkpoint that transformers opens, so it can be no smaller than a config can say: one number of
heads and one intermediate size for all layers, so that layers that lost more keep zeros up to the largest layer's
count; fewer heads only where the family names their size apart from the width (Llama and its neighbours), and only
numbers of them that divide the width. What stays for such a reason is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsehpc.core.errors import UserError
from sparsehpc.models.structure import bias_name
from sparsehpc.pruning.structured import Units, units_by_layer

if TYPE_CHECKING:
    from sparsehpc.models.structure import Structure

#: Config keys of the number of query heads, key/value heads and neurons, by family; no heads: they cannot shrink.
_KEYS: dict[str, tuple[str, str, str]] = {
    "opt": ("", "", "ffn_dim"),
    "gpt_neox": ("", "", "intermediate_size"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3"), ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    ),
}

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Smaller:
    """What a model can leave out.

    Parameters
    ----------
    config
        Keys of config.json with their new values; empty where nothing goes.
    stayed
        Why zeros stay, one sentence each.
    layers_path
        Module path of the list of decoder layers.
    layers
        Decoder layers that stay.
    places
        By name of a tensor: the axis it is cut along, and the indices that stay.
    """

    config: Mapping[str, Any]
    stayed: tuple[str, ...]
    layers_path: str
    layers: tuple[int, ...]
    places: Mapping[str, tuple[int, NDArray[np.int64]]]

    def new_name(self, name: str) -> str | None:
        """Name of a tensor in the smaller model, where layers are numbered anew; None if its layer goes."""
        prefix = f"{self.layers_path}."
        if not name.startswith(prefix):
            return name
        layer, _, rest = name.removeprefix(prefix).partition(".")
        return f"{prefix}{self.layers.index(int(layer))}.{rest}" if int(layer) in self.layers else None

    def cut(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """What stays of some tensors (of one section, or of the whole model), by their new names."""
        smaller = {}
        for name, tensor in tensors.items():
            if (new := self.new_name(name)) is None:
                continue
            if name in self.places:
                axis, kept = self.places[name]
                tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
            smaller[new] = tensor
        return smaller


def find_smaller(structure: Structure, config: Mapping[str, Any], sections: Iterable[Tensors]) -> Smaller:
    """Find what is zero as a whole unit and can be left out.

    Parameters
    ----------
    structure
        The model's structure.
    config
        Content of its config.json.
    sections
        Tensors of every decoder layer in order, zeros in place; each is looked at and dropped.

    Raises
    ------
    UserError
        Nothing is known of how the family's config says a smaller shape.
    """
    if structure.model_type not in _KEYS:
        raise UserError(f"models of type {structure.model_type!r} cannot be made smaller", f"legal: {', '.join(_KEYS)}")
    linears = [p for p in structure.parameters if p.kind == "linear" and p.layer is not None]
    units = {pattern: units_by_layer(linears, pattern) for pattern in ("neurons", "heads")}
    alive: dict[str, list[NDArray[np.int64]]] = {pattern: [] for pattern in units}
    layers = []
    for layer, tensors in zip(range(structure.layers), sections, strict=True):
        for pattern, found in units.items():
            alive[pattern].append(_alive(tensors, found[layer]))
        if not _empty(tensors, [p.name for p in linears if p.layer == layer]):
            layers.append(layer)
    changes, stayed = _layers(structure, config, layers)
    layers = layers if "num_hidden_layers" in changes else list(range(structure.layers))
    places: dict[str, tuple[int, NDArray[np.int64]]] = {}
    query_key, key_value_key, neurons_key = _KEYS[structure.model_type]
    for pattern, found in units.items():
        count = found[0].count
        most = keep = max(1, max(len(alive[pattern][layer]) for layer in layers))
        if any(len(alive[pattern][layer]) < most for layer in layers):
            stayed.append(
                f"a config has one number of {pattern} for all layers, and one layer lost {count - most} of {count}: "
                "where more are zero, they stay"
            )
        if most == count:
            continue
        if pattern == "heads" and not query_key:
            stayed.append(
                f"a smaller {structure.model_type} cannot leave out heads: its config ties their size to the width"
            )
            continue
        if pattern == "heads":
            reader = found[0].reader.parameter
            size = reader.shape[1] // reader.head_size // count  # query heads that share a key/value head
            while structure.hidden % (size * keep):
                keep += 1
            if keep > most:
                stayed.append(
                    f"the width {structure.hidden} must be a multiple of the number of heads: "
                    f"{keep} of {count} units of {size} heads stay where {most} would do"
                )
            if keep == count:
                continue
            changes |= {query_key: size * keep, key_value_key: keep, "head_dim": reader.head_size}
        else:
            changes[neurons_key] = keep
        for layer in layers:
            places |= _places(found[layer], alive[pattern][layer], keep)
    return Smaller(changes, tuple(stayed), structure.layers_path, tuple(layers), places)


def _layers(structure: Structure, config: Mapping[str, Any], layers: Sequence[int]) -> tuple[dict[str, Any], list[str]]:
    """Changes to the config where only ``layers`` hold anything, or why all stay."""
    if len(layers) == structure.layers:
        return {}, []
    if not layers:
        return {}, ["every decoder layer is empty, and a model needs one"]
    if any(p.post_norm for p in structure.parameters):
        return {}, ["this model normalises behind its residual connections: an empty layer is not the same as none"]
    changes: dict[str, Any] = {"num_hidden_layers": len(layers)}
    if config.get("layer_types"):  # one entry per layer
        changes["layer_types"] = [config["layer_types"][layer] for layer in layers]
    return changes, []


def _empty(tensors: Tensors, weights: Iterable[str]) -> bool:
    """Whether linears and their biases are all zero."""
    names = [name for weight in weights for name in (weight, bias_name(weight)) if name in tensors]
    return not any(bool(tensors[name].any()) for name in names)


def _alive(tensors: Tensors, units: Units) -> NDArray[np.int64]:
    """Units that some weight still reads."""
    reader = units.reader
    columns = tensors[reader.parameter.name].ne(0).any(0).cpu().numpy()
    return np.flatnonzero(np.bincount(reader.owner, weights=columns, minlength=units.count))


def _places(units: Units, alive: NDArray[np.int64], keep: int) -> dict[str, tuple[int, NDArray[np.int64]]]:
    """Where to cut one layer's tensors so that ``keep`` units stay, the living ones among them."""
    dead = np.setdiff1d(np.arange(units.count), alive)
    kept = np.concatenate([alive, dead[: keep - len(alive)]])
    places = {}
    for part in units.parts:
        where = np.flatnonzero(np.isin(part.owner, kept))
        places[part.parameter.name] = (part.axis, where)
        if part.axis == 0:
            places[bias_name(part.parameter.name)] = (0, where)
    return places

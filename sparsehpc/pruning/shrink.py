"""A really smaller model from one whose heads, neurons or layers are zero: fewer rows, columns and layers, one config.

The result is a plain checkpoint: transformers opens it where its config can say the new shape. A config has one number
of heads and one intermediate size for all layers, so layers that lost more keep zeros up to the largest layer's count;
heads can go only where the family names its head size apart from its width (Llama's kin).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsehpc.core.errors import UserError
from sparsehpc.pruning.structured import Units, units_by_layer

if TYPE_CHECKING:
    from sparsehpc.models.structure import Parameter, Structure

#: Config keys of the number of query heads, key/value heads and neurons, by family; no heads: they cannot shrink.
_KEYS: dict[str, tuple[str, str, str]] = {
    "opt": ("", "", "ffn_dim"),
    "gpt_neox": ("", "", "intermediate_size"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3"), ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    ),
}


def shrink(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], structure: Structure
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Leave out what is zero as a whole unit.

    Parameters
    ----------
    tensors
        All parameters by name, zeros in place.
    config
        Content of config.json.
    structure
        The model's structure.

    Returns
    -------
    tensors, config
        Of the smaller model; the same objects where nothing can go.

    Raises
    ------
    UserError
        Heads are zero, but the family's config cannot say so.
    """
    if structure.model_type not in _KEYS:
        raise UserError(f"models of type {structure.model_type!r} cannot be made smaller", f"legal: {', '.join(_KEYS)}")
    query_key, key_value_key, neurons_key = _KEYS[structure.model_type]
    smaller, changed = dict(tensors), dict(config)
    linears = [p for p in structure.parameters if p.kind == "linear" and p.layer is not None]
    neurons = units_by_layer(linears, "neurons")
    if (kept := _cut(smaller, neurons)) is not None:
        changed[neurons_key] = kept
    heads = units_by_layer(linears, "heads")
    if all(units.count == len(_alive(tensors, units)) for units in heads):
        return smaller, changed
    if not query_key:
        raise UserError(
            f"a smaller {structure.model_type} cannot leave out heads: its config ties their size to the width",
            "its weights keep their zeros; the storage format 'compact' leaves them out",
        )
    if (kept := _cut(smaller, heads)) is not None:
        reader = heads[0].reader.parameter
        queries = reader.shape[1] // reader.head_size
        changed |= {
            query_key: queries // heads[0].count * kept,
            key_value_key: kept,
            "head_dim": reader.head_size,
        }
    return smaller, changed


def _alive(tensors: Mapping[str, torch.Tensor], units: Units) -> NDArray[np.int64]:
    """Units that some weight still reads."""
    reader = units.reader
    columns = tensors[reader.parameter.name].ne(0).any(0).cpu().numpy()
    return np.flatnonzero(np.bincount(reader.owner, weights=columns, minlength=units.count))


def _cut(tensors: dict[str, torch.Tensor], layers: Sequence[Units]) -> int | None:
    """Cut every layer down to the largest number of living units; returns it, or None where nothing can go."""
    alive = [_alive(tensors, units) for units in layers]
    keep = max(1, max(len(found) for found in alive))
    if keep == layers[0].count:
        return None
    for units, found in zip(layers, alive, strict=True):
        dead = np.setdiff1d(np.arange(units.count), found)
        kept = np.sort(np.concatenate([found, dead[: keep - len(found)]]))
        for part in units.parts:
            where = torch.from_numpy(np.flatnonzero(np.isin(part.owner, kept)))
            name = part.parameter.name
            tensors[name] = tensors[name].index_select(part.axis, where.to(tensors[name].device))
            bias = name.removesuffix("weight") + "bias"
            if part.axis == 0 and bias in tensors:
                tensors[bias] = tensors[bias].index_select(0, where.to(tensors[bias].device))
    return keep


def drop_layers(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], structure: Structure, gone: Sequence[int]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Leave out whole decoder layers and number the others anew."""
    kept = [layer for layer in range(structure.layers) if layer not in set(gone)]
    smaller: dict[str, torch.Tensor] = {}
    for parameter in structure.parameters:
        if parameter.name not in tensors or (parameter.layer is not None and parameter.layer not in kept):
            continue
        smaller[_renumbered(parameter, structure, kept)] = tensors[parameter.name]
    return smaller, {**config, "num_hidden_layers": len(kept)}


def _renumbered(parameter: Parameter, structure: Structure, kept: Sequence[int]) -> str:
    if parameter.layer is None:
        return parameter.name
    prefix = f"{structure.layers_path}."
    rest = parameter.name.removeprefix(prefix).partition(".")[2]
    return f"{prefix}{kept.index(parameter.layer)}.{rest}"

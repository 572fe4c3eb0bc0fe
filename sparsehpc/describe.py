"""A model's structure, dense or pruned and stored, without running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import DTYPE_BYTES, Cell
from sparsehpc.formats.base import FORMATS
from sparsehpc.metrics.base import ModelView, TensorView
from sparsehpc.metrics.measures.structure import Structure
from sparsehpc.pruning.base import Site, make_method

if TYPE_CHECKING:
    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.models.structure import Structure as ModelStructure


def describe_dense(cell: Cell, structure: ModelStructure, published_dtype: str, source_bytes: int) -> list[Measurement]:
    """Structure rows of a dense model from its config alone; weights count as non-zero. Needs no torch."""
    size = DTYPE_BYTES[cell.dtype]
    prunable = {p.name for p in structure.prunable(cell.pruning.targets)}
    views = [
        TensorView(
            parameter=p,
            prunable=p.name in prunable,
            numel=p.numel,
            nonzeros=p.numel,
            component_bytes={
                "values" if p.name in prunable else "bias" if p.kind == "bias" else "weight": p.numel * size
            },
            flops_executed=2 * p.numel if p.kind == "linear" else 0,
        )
        for p in structure.parameters
    ]
    return list(Structure().model(ModelView(cell, structure, published_dtype, source_bytes, views)))


def describe_pruned(
    cell: Cell, snapshot: Snapshot, progress: Callable[[int, int], None] | None = None
) -> list[Measurement]:
    """Structure rows of a pruned and stored model, one decoder layer at a time.

    Parameters
    ----------
    cell
        What to do; its method must be one without calibration data.
    snapshot
        The model.
    progress
        Called with tensors done and tensors in all.
    """
    from sparsehpc.tracks import tensor_view

    pruning = cell.pruning
    structure = snapshot.structure
    parameters = structure.prunable(pruning.targets)
    sites = {p.name: Site(p, index) for index, p in enumerate(parameters)}
    method = make_method(pruning)
    method.survey(parameters, lambda name: snapshot.read([name], cell.dtype)[name])
    storage = FORMATS.get(cell.variant)
    views = []
    for section in (*range(structure.layers), None):
        members = [p for p in structure.parameters if p.layer == section]
        weights = snapshot.read([p.name for p in members], cell.dtype)
        chosen = [sites[p.name] for p in members if p.name in sites]
        pruned = method.prune_section({s.parameter.name: weights[s.parameter.name] for s in chosen}, chosen, {})
        stored = {name: storage.encode(result.weight, pruning.pattern) for name, result in pruned.items()}
        weights |= {name: result.weight for name, result in pruned.items()}
        views += [tensor_view(p, weights[p.name], stored.get(p.name), p.name in sites) for p in members]
        if progress is not None:
            progress(len(views), len(structure.parameters))
    source = snapshot.source_bytes if snapshot.trained else 0
    return list(Structure().model(ModelView(cell, structure, snapshot.published_dtype, source, views)))

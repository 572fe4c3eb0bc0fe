"""A model's structure as a table: parameters, zeros, bytes and FLOPs by group, in both conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsehpc.core.schema import GROUPS, Measurement
from sparsehpc.core.spec import DENSE, DTYPE_BYTES, Cell, Pruning, Windows, decimal_text
from sparsehpc.describe import describe_dense, describe_pruned
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.snapshot import is_prepared, open_snapshot, structure_of
from sparsehpc.models.sources import offline_preparable, prepare
from sparsehpc.pruning.base import METHODS

#: Text is not read: the structure of a cell does not depend on it.
_NO_TEXT = Windows(corpus="samples", windows=1, window_tokens=1)


def describe(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    sparsity: str | None = None,
    method: str = "magnitude",
    pattern: str = "unstructured",
    variant: str = "csr",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Structure of a model, dense or pruned and stored.

    Parameters
    ----------
    model, revision, dtype
        As in a study.
    sparsity
        Fraction of the prunable weights to remove; None describes the dense model from its config alone.
    method, pattern, variant
        How weights are removed and stored.
    progress
        Called with tensors done and tensors in all.

    Returns
    -------
    dict
        ``model``, ``variant``, ``sparsity``, ``groups`` and ``total`` by convention, ``references`` in bytes.
    """
    if sparsity is None:
        cell = Cell(model=model, revision=revision, dtype=dtype, evaluation=_NO_TEXT)
        structure = structure_of(model, revision)
        published, source = dtype, 0
        if is_prepared(model, revision):
            snapshot = open_snapshot(model, revision)
            published, source = snapshot.published_dtype, snapshot.source_bytes if snapshot.trained else 0
        rows = describe_dense(cell, structure, published, source)
    else:
        METHODS.get(method)
        FORMATS.get(variant)
        pruning = Pruning(method=method, pattern=pattern, sparsity=decimal_text(sparsity))
        cell = Cell(model=model, revision=revision, dtype=dtype, evaluation=_NO_TEXT, variant=variant, pruning=pruning)
        prepared = is_prepared(model, revision)
        if not prepared and offline_preparable(model):
            snapshot = prepare(model, revision)
        else:
            snapshot = open_snapshot(model, revision)
        rows = describe_pruned(cell, snapshot, progress)
    return {
        "model": model,
        "dtype": dtype,
        "variant": cell.variant,
        "method": cell.pruning.method,
        "pattern": cell.pruning.pattern,
        "sparsity": cell.pruning.sparsity,
        "value_bytes": DTYPE_BYTES[dtype],
        "conventions": {name: _convention(rows, name) for name in ("unique", "study")},
        "references": {row.metric: row.numerator for row in rows if row.scope == "model" and row.convention == ""},
        "dense": cell.variant == DENSE,
    }


def _convention(rows: list[Measurement], convention: str) -> dict[str, Any]:
    groups = {
        group: _figures([r for r in rows if r.convention == convention and r.scope == "group" and r.group == group])
        for group in GROUPS
    }
    return {
        "groups": {name: figures for name, figures in groups.items() if figures},
        "total": _figures([r for r in rows if r.convention == convention and r.scope == "model"]),
    }


def _figures(rows: list[Measurement]) -> dict[str, float]:
    """Sums of one subject; bytes also by component."""
    figures: dict[str, float] = {}
    for row in rows:
        if row.reduction == "ratio":
            figures[row.metric] = row.numerator / row.denominator
            continue
        figures[row.metric] = figures.get(row.metric, 0) + row.numerator
        if row.component:
            figures[f"{row.metric}_{row.component}"] = row.numerator
    return figures

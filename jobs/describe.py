"""A model's structure as a table: parameters, zeros, bytes and FLOPs by group, in both conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsehpc.core.errors import UserError
from sparsehpc.core.schema import GROUPS, Measurement
from sparsehpc.core.spec import DENSE, DTYPE_BYTES, Cell, Pruning, Windows, decimal_text
from sparsehpc.describe import describe_dense, describe_pruned
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.snapshot import is_prepared, open_snapshot, structure_of
from sparsehpc.models.sources import offline_preparable, prepare
from sparsehpc.models.structure import Structure
from sparsehpc.pruning.base import METHODS
from sparsehpc.pruning.patterns import parse_pattern

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
        Fraction of the prunable weights to remove; None describes the dense model from its config alone. A pattern
        that keeps N of M fixes it.
    method, pattern, variant
        How weights are removed and stored.
    progress
        Called with tensors done and tensors in all.

    Returns
    -------
    dict
        ``model``, ``variant``, ``sparsity``, ``groups`` and ``total`` by convention, ``references`` in bytes.

    Raises
    ------
    UserError
        The method needs calibration text or cannot make the pattern, or the variant cannot store it.
    """
    fixed = parse_pattern(pattern).fixed_sparsity
    if fixed is not None:
        sparsity = str(fixed)
    if sparsity is None:
        cell = Cell(model=model, revision=revision, dtype=dtype, evaluation=_NO_TEXT)
        structure = structure_of(model, revision)
        published, source = dtype, 0
        if is_prepared(model, revision):
            snapshot = open_snapshot(model, revision)
            published, source = snapshot.published_dtype, snapshot.source_bytes if snapshot.trained else 0
        rows = describe_dense(cell, structure, published, source)
    else:
        pruning = Pruning(method=method, pattern=pattern, sparsity=decimal_text(sparsity))
        _check(pruning, variant, dtype, structure_of(model, revision))
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


def _check(pruning: Pruning, variant: str, dtype: str, structure: Structure) -> None:
    """Refuse what a study would leave out of its plan."""
    method, layout = METHODS.get(pruning.method), FORMATS.get(variant)
    if method.needs_calibration(pruning.allocation, pruning.refit):
        raise UserError(f"method {method.name!r} needs calibration text", "sparsehpc run STUDY measures it")
    if pruning.pattern not in method.patterns:
        raise UserError(
            f"method {method.name!r} cannot make pattern {pruning.pattern!r}", f"legal: {', '.join(method.patterns)}"
        )
    if layout.reference or variant == DENSE:
        raise UserError(f"variant {variant!r} stores the dense model", "leave out --sparsity, or name another variant")
    prunable = structure.prunable(pruning.targets)
    if (reason := method.unsupported(pruning, prunable)) is not None:
        raise UserError(f"{pruning.method} {pruning.pattern} {pruning.sparsity} cannot be: {reason}")
    for parameter in prunable:
        rows, columns = parameter.shape
        if (reason := layout.unsupported(rows, columns, dtype, pruning.pattern)) is not None:
            raise UserError(
                f"variant {variant!r} cannot store {parameter.name}: {reason}", "sparsehpc ls variants lists the others"
            )


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

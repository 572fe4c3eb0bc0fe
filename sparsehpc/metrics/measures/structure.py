"""Structure: parameters, zeros, bytes and FLOPs per tensor, layer, group and model, in two conventions.

``unique`` counts each stored tensor once, bills no look-ups, and counts every array that the storage holds.
``study`` repeats the accounting of the study this project began as: the tied head counted again, embedding look-ups
billed as matrix products, biases left out under CSR, and CSR weights, which it kept as buffers, weighing nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import ClassVar

from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.formats.base import FORMATS, Format
from sparsehpc.metrics.base import METRICS, Metric, ModelView, TensorView


@dataclasses.dataclass(slots=True)
class Counts:
    """Sums over tensors."""

    params: int = 0
    nonzeros: int = 0
    prunable: int = 0
    prunable_zeros: int = 0
    flops_dense: int = 0
    flops_theoretical: int = 0
    flops_executed: int = 0
    component_bytes: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Add another tensor's counts."""
        for field in dataclasses.fields(self):
            if field.name != "component_bytes":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.component_bytes.update(other.component_bytes)


def unique_counts(view: TensorView) -> Counts:
    """Count a tensor by what is stored and what is multiplied."""
    parameter = view.parameter
    counts = Counts()
    if parameter.tied_to is None:
        counts.params, counts.nonzeros = view.numel, view.nonzeros
        counts.component_bytes.update(view.component_bytes)
        if view.prunable:
            counts.prunable, counts.prunable_zeros = view.numel, view.numel - view.nonzeros
    if parameter.kind == "linear":
        counts.flops_dense = 2 * view.numel
        counts.flops_theoretical = 2 * (view.nonzeros if view.prunable else view.numel)
        counts.flops_executed = view.flops_executed
    return counts


def study_counts(view: TensorView, buffers: bool, itemsize: int) -> Counts:
    """Count a tensor as the study's second notebook did.

    Parameters
    ----------
    view
        The tensor.
    buffers
        Whether the pruned weights are kept as buffers (the CSR variants).
    itemsize
        Bytes of a value.
    """
    parameter = view.parameter
    if parameter.kind == "bias" and buffers and parameter.group in ("attention", "mlp"):
        return Counts()
    counts = Counts(params=view.numel, nonzeros=view.nonzeros)
    buffered = view.prunable and buffers
    if not buffered:
        counts.component_bytes["weight"] = view.numel * itemsize
    if parameter.kind in ("linear", "embedding"):
        counts.flops_dense = 2 * view.numel
        counts.flops_theoretical = 2 * (view.nonzeros if view.prunable else view.numel)
        counts.flops_executed = counts.flops_theoretical if buffered else counts.flops_dense
    return counts


def study_global(views: Iterable[TensorView], buffers: bool, itemsize: int) -> Counts:
    """Count parameters and bytes of the whole model as the study's first notebook did: CSR weights are lost."""
    total = Counts()
    for view in views:
        if view.parameter.tied_to is not None or (view.prunable and buffers):
            continue
        total.params += view.numel
        total.nonzeros += view.nonzeros
        total.component_bytes["weight"] += view.numel * itemsize
    return total


@METRICS.register("structure")
class Structure(Metric):
    """Parameters, zeros, bytes and FLOPs."""

    name = "structure"
    summary = "parameters, non-zeros, bytes by component and FLOPs per token, by tensor, layer, group and model"
    better: ClassVar[dict[str, str]] = {
        "bytes_total": "lower",
        "bytes_ratio": "lower",
        "flops_theoretical": "lower",
        "flops_executed": "lower",
    }

    def model(self, view: ModelView) -> Iterator[Measurement]:
        """Rows of every scope in both conventions, and the sizes a reader compares with."""
        itemsize = DTYPE_BYTES[view.cell.dtype]
        variant = FORMATS.get(view.cell.variant)
        buffers = variant.study_buffers
        unique = [(tensor, unique_counts(tensor)) for tensor in view.tensors]
        study = [(tensor, study_counts(tensor, buffers, itemsize)) for tensor in view.tensors]
        dense_bytes = view.structure.params_total * itemsize

        yield from _scoped_rows("unique", unique)
        total = _total(counts for _, counts in unique)
        yield from _rows("model", "model", "unique", total, dense_bytes=dense_bytes)

        yield from _scoped_rows("study", study)
        flops = _total(counts for _, counts in study)
        first_notebook = study_global(view.tensors, buffers, itemsize)
        for name in ("flops_dense", "flops_theoretical", "flops_executed"):
            setattr(first_notebook, name, getattr(flops, name))
        yield from _rows("model", "model", "study", first_notebook, dense_bytes=dense_bytes)

        def reference(metric: str, value: float, unit: str) -> Measurement:
            return Measurement("model", "model", metric, value, 1.0, "max", unit)

        params = view.structure.params_total
        yield reference("bytes_dense_float32", params * DTYPE_BYTES["float32"], "bytes")
        yield reference("bytes_dense_published", params * DTYPE_BYTES[view.published_dtype], "bytes")
        if view.source_bytes:
            yield reference("bytes_source_file", view.source_bytes, "bytes")
        for name, form in FORMATS:
            if form.reference and (size := _bytes_in(form, view)) is not None:
                yield reference(f"bytes_{name.replace('-', '_')}", size, "bytes")
        yield reference("attention_flops_per_context_token", view.structure.attention_flops_per_context_token, "flops")
        break_even = variant.break_even_sparsity(view.cell.dtype)
        if break_even is not None:
            yield reference("break_even_sparsity", break_even, "1")


def _bytes_in(form: type[Format], view: ModelView) -> int | None:
    """Bytes of the dense model with its prunable matrices in another dense format; None where it cannot be told."""
    total = 0
    for tensor in view.tensors:
        parameter = tensor.parameter
        if tensor.prunable:
            rows, columns = parameter.shape
            size = form.predicted_bytes(rows, columns, tensor.numel, view.cell.dtype)
            if size is None:
                return None
            total += size
        elif parameter.tied_to is None:
            total += tensor.numel * DTYPE_BYTES[view.cell.dtype]
    return total


def _total(counts: Iterable[Counts]) -> Counts:
    total = Counts()
    for item in counts:
        total.add(item)
    return total


def _scoped_rows(convention: str, counted: list[tuple[TensorView, Counts]]) -> Iterator[Measurement]:
    """Rows per tensor, layer and group."""
    whole = sum(counts.params for _, counts in counted)
    layers: dict[int, Counts] = {}
    groups: dict[str, Counts] = {}
    for tensor, counts in counted:
        parameter = tensor.parameter
        yield from _rows("tensor", parameter.name, convention, counts, parameter.layer, parameter.group)
        if parameter.layer is not None:
            layers.setdefault(parameter.layer, Counts()).add(counts)
        groups.setdefault(parameter.group, Counts()).add(counts)
    for layer, counts in layers.items():
        yield from _rows("layer", str(layer), convention, counts, layer, whole=whole)
    for group, counts in groups.items():
        yield from _rows("group", group, convention, counts, group=group, whole=whole)


def _rows(
    scope: str,
    subject: str,
    convention: str,
    counts: Counts,
    layer: int | None = None,
    group: str = "",
    whole: int | None = None,
    dense_bytes: int | None = None,
) -> Iterator[Measurement]:
    def row(
        metric: str, value: float, of: float = 1.0, how: str = "sum", unit: str = "1", component: str = ""
    ) -> Measurement:
        return Measurement(scope, subject, metric, value, of, how, unit, component, convention, layer, group)

    zeros = counts.params - counts.nonzeros
    yield row("params_total", counts.params, unit="weights")
    yield row("params_nonzero", counts.nonzeros, unit="weights")
    if counts.params:
        yield row("sparsity", zeros, counts.params, "ratio")
    if counts.prunable:
        yield row("sparsity_prunable", counts.prunable_zeros, counts.prunable, "ratio")
    for component, size in sorted(counts.component_bytes.items()):
        yield row("bytes_total", size, unit="bytes", component=component)
    if not counts.component_bytes:
        yield row("bytes_total", 0, unit="bytes")
    yield row("flops_dense", counts.flops_dense, unit="flops")
    yield row("flops_theoretical", counts.flops_theoretical, unit="flops")
    yield row("flops_executed", counts.flops_executed, unit="flops")
    if whole:
        yield row("param_fraction", counts.params, whole, "ratio")
    if dense_bytes:
        yield row("bytes_ratio", sum(counts.component_bytes.values()), dense_bytes, "ratio")

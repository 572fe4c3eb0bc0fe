"""How much of a linear's output pruning loses, one linear at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.base import METRICS, Metric, ModelView


@METRICS.register("reconstruction")
class Reconstruction(Metric):
    """Squared error of the outputs over the dense outputs' squares, of a linear and of all of a layer."""

    name = "reconstruction"
    summary = (
        "squared error of each pruned linear's outputs over the dense outputs' squares, on the dense model's inputs"
    )
    better: ClassVar[dict[str, str]] = {"reconstruction_error": "lower"}

    def model(self, view: ModelView) -> Iterator[Measurement]:
        """Rows of every linear whose outputs were compared."""
        for tensor in view.tensors:
            if tensor.output_error is None:
                continue
            error, squares = tensor.output_error
            if not squares:  # dense gives nothing on the sample: there is no share of it
                continue
            parameter = tensor.parameter
            for scope, subject in (("tensor", parameter.name), ("layer", str(parameter.layer))):
                yield Measurement(
                    scope, subject, "reconstruction_error", error, squares, "ratio",
                    layer=parameter.layer, group=parameter.group if scope == "tensor" else "",
                )  # fmt: skip

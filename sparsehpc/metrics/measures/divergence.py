"""How far the cell's distribution over the next token is from the dense model's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.base import METRICS, Metric, WindowView


@METRICS.register("divergence")
class Divergence(Metric):
    """Kullback-Leibler divergence KL(dense || cell) in nats per position."""

    name = "divergence"
    summary = "KL(dense || cell) in nats per position, softmax sums in float64"
    better: ClassVar[dict[str, str]] = {"kl": "lower"}

    def window(self, view: WindowView) -> Iterator[Measurement]:
        """One row per window."""
        yield view.row("kl", float(view.positions.kl[: view.counted].sum()), view.counted, "ratio", "nats")

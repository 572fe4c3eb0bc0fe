"""How well the cell predicts the text: likelihood, perplexity, bits per byte, dense beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.base import METRICS, Metric, WindowView


@METRICS.register("likelihood")
class Likelihood(Metric):
    """Negative log-likelihood of the predicted tokens, its exponential, and bits per UTF-8 byte."""

    name = "likelihood"
    summary = "negative log-likelihood (nats per token), perplexity, bits per byte; of the cell and of dense"
    better: ClassVar[dict[str, str]] = {"nll": "lower", "perplexity": "lower", "bits_per_byte": "lower"}

    def window(self, view: WindowView) -> Iterator[Measurement]:
        """Rows of one window, for the cell and for dense."""
        for suffix, nll in (("", view.positions.nll), ("_dense", view.dense.nll)):
            nats, predicted = float(nll.sum()), len(nll)
            yield view.row("nll" + suffix, nats, predicted, "ratio", "nats")
            yield view.row("perplexity" + suffix, nats, predicted, "exp_ratio")
            yield view.row("bits_per_byte" + suffix, nats / math.log(2), view.text_bytes, "ratio", "bits")

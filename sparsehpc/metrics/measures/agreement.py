"""Agreement with the dense model's choices, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.base import METRICS, Metric, WindowView


@METRICS.register("agreement")
class Agreement(Metric):
    """Top-1 agreement, rank of the dense choice, next-token accuracy as a two-by-two count."""

    name = "agreement"
    summary = "share of positions where the cell's most likely token is the dense model's; rank; accuracy"
    better: ClassVar[dict[str, str]] = {
        "top1_agreement": "higher",
        "mean_rank": "lower",
        "accuracy": "higher",
        "top1_differs_from_masked": "lower",
    }

    def window(self, view: WindowView) -> Iterator[Measurement]:
        """Rows of one window."""
        counted = slice(view.counted)
        dense, choice = view.dense.choice, view.positions.choice
        equal = int((dense == choice)[counted].sum())
        yield view.row("top1_agreement", equal, view.counted, "ratio")
        yield view.row("mean_rank", float(view.positions.rank[counted].sum()), view.counted, "ratio")

        following = view.ids[1:]
        dense_right, right = dense[:-1] == following, choice[:-1] == following
        predicted = len(following)
        yield view.row("accuracy", int(right.sum()), predicted, "ratio")
        yield view.row("accuracy_dense", int(dense_right.sum()), predicted, "ratio")
        yield view.row("both_right", int((dense_right & right).sum()), unit="tokens")
        yield view.row("dense_only_right", int((dense_right & ~right).sum()), unit="tokens")
        yield view.row("variant_only_right", int((~dense_right & right).sum()), unit="tokens")
        yield view.row("both_wrong", int((~dense_right & ~right).sum()), unit="tokens")

        if view.masked_choice is not None:
            differing = int((view.masked_choice != choice)[counted].sum())
            yield view.row("top1_differs_from_masked", differing, view.counted, "ratio")

"""Where behaviour changes: by position in the window, and by how sure the dense model was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.base import METRICS, Metric, WindowView

if TYPE_CHECKING:
    import torch

#: Lower edges of the bins of positions (the first token of a window is 0) and of margins (nats); the last is open.
POSITION_EDGES = (0, 16, 32, 64, 128, 256, 512, 1024)
MARGIN_EDGES = (0, 0.01, 0.1, 0.3, 1, 3)


@METRICS.register("bins")
class Bins(Metric):
    """Agreement, divergence and flips by position, and by the margin between the dense model's two best tokens.

    A small margin flips from rounding alone; a large one only where the model has changed.
    """

    name = "bins"
    summary = "agreement, KL, accuracy and flips by position and by the dense model's top-1 to top-2 margin"
    better: ClassVar[dict[str, str]] = {}

    def window(self, view: WindowView) -> Iterator[Measurement]:
        """Rows of one window; those of the same bin add up over windows."""
        import torch

        positions = torch.arange(view.counted, device=view.ids.device)
        yield from self._rows(view, "position", positions, POSITION_EDGES)
        yield from self._rows(view, "margin", view.dense.margin[: view.counted], MARGIN_EDGES)

    def _rows(self, view: WindowView, name: str, values: torch.Tensor, edges: Sequence[float]) -> Iterator[Measurement]:
        import torch

        counted = view.counted
        lower = torch.tensor(edges, dtype=values.dtype, device=values.device)
        # The last edge that is not above the value.
        place = torch.bucketize(values, lower, right=True).cpu() - 1
        dense, choice = view.dense.choice.cpu(), view.positions.choice.cpu()
        following = view.ids[1:].cpu()
        predicted = torch.arange(counted) < len(following)
        dense_right, right = torch.zeros(counted, dtype=torch.bool), torch.zeros(counted, dtype=torch.bool)
        dense_right[predicted] = (dense[:-1] == following)[:counted]
        right[predicted] = (choice[:-1] == following)[:counted]

        def sums(weights: torch.Tensor) -> list[float]:
            found: list[float] = torch.bincount(place, weights.double(), minlength=len(edges)).tolist()
            return found

        inside = sums(torch.ones(counted))
        of_text = sums(predicted)
        columns = (
            ("top1_agreement", sums((dense == choice)[:counted]), inside, "ratio", "1"),
            ("kl", sums(view.positions.kl[:counted].cpu()), inside, "ratio", "nats"),
            ("accuracy", sums(right), of_text, "ratio", "1"),
            ("accuracy_dense", sums(dense_right), of_text, "ratio", "1"),
            ("dense_only_right", sums(dense_right & ~right), None, "sum", "tokens"),
            ("variant_only_right", sums(right & ~dense_right), None, "sum", "tokens"),
        )
        for number, subject in enumerate(labels(name, edges)):
            if not inside[number]:
                continue
            for metric, tops, bottoms, reduction, unit in columns:
                bottom = 1.0 if bottoms is None else bottoms[number]
                if bottom:
                    yield Measurement("bin", subject, metric, tops[number], bottom, reduction, unit)


def labels(name: str, edges: Sequence[float]) -> list[str]:
    """Subjects of the bins: name, lower edge, upper edge left out.

    >>> labels("margin", (0, 0.5, 3))
    ['margin [0, 0.5)', 'margin [0.5, 3)', 'margin [3, inf)']
    """
    ends = [*edges[1:], math.inf]
    return [f"{name} [{low:g}, {high:g})" for low, high in zip(edges, ends, strict=True)]

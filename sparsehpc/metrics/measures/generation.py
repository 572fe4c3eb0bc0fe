"""What greedy generation makes of it: where the continuation leaves the dense model's, and whether it loops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.base import METRICS, Metric, ModelView

if TYPE_CHECKING:
    import torch


@METRICS.register("generation")
class Generation(Metric):
    """Greedy continuations of fixed prompts beside the dense model's."""

    name = "generation"
    summary = "greedy continuations of 20 prompts: first divergence, share equal, share of distinct bigrams"
    better: ClassVar[dict[str, str]] = {
        "generation_first_divergence": "higher",
        "generation_share_equal": "higher",
        "generation_distinct_bigrams": "higher",
    }

    def model(self, view: ModelView) -> Iterator[Measurement]:
        """Rows of the cell, where it generated."""
        if view.tokens is None or view.dense_tokens is None:
            return

        def row(metric: str, value: float, of: float, unit: str = "1") -> Measurement:
            return Measurement("model", "model", metric, value, of, "ratio", unit)

        equal = view.tokens == view.dense_tokens
        prompts, length = equal.shape
        # The longest common prefix: the position of the first difference, or the whole length.
        common = int(equal.long().cumprod(dim=1).sum())
        yield row("generation_first_divergence", common, prompts, "tokens")
        yield row("generation_share_equal", int(equal.sum()), prompts * length)
        for suffix, tokens in (("", view.tokens), ("_dense", view.dense_tokens)):
            distinct = sum(len(bigrams(prompt)) for prompt in tokens)
            yield row("generation_distinct_bigrams" + suffix, distinct, prompts * max(1, length - 1))


def bigrams(tokens: torch.Tensor) -> set[tuple[int, int]]:
    """Return the distinct pairs of neighbouring tokens."""
    values = tokens.tolist()
    return set(itertools.pairwise(values))

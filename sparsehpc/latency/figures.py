"""What a timed cell came to: times, ratios to the dense model, and what bytes and operations would have allowed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import DTYPE_BYTES

if TYPE_CHECKING:
    from sparsehpc.latency.timed_model import TimedModel, Times


def figures(
    model: TimedModel,
    dense: TimedModel,
    ours: Sequence[Times],
    theirs: Sequence[Times],
    reads: Sequence[float],
    zeros: int,
    error: float,
) -> list[Measurement]:
    """All figures of one cell.

    Parameters
    ----------
    model, dense
        Both sides.
    ours, theirs
        Their times, round by round.
    reads
        Seconds of plain reads of what a token of ``model`` streams; empty where they cannot be timed.
    zeros
        Weights of the linears that are zero.
    error
        Largest difference of a logit from the masked model's, relative to the largest logit.
    """
    token_s = statistics.median(second for run in ours for second in run.tokens_s)
    return [
        *_times("", ours),
        *_times("_dense", theirs),
        *_ratios(ours, theirs),
        *_weights(model, dense, zeros, token_s, reads),
        _row("logits_error", error, "1"),
    ]


def _times(suffix: str, runs: Sequence[Times]) -> list[Measurement]:
    tokens = [second for run in runs for second in run.tokens_s]
    prompts = [run.prompt_s for run in runs]
    return [
        _row(f"decode_s_per_token{suffix}", statistics.median(tokens), "s"),
        _row(f"decode_p90_s_per_token{suffix}", _p90(tokens), "s"),
        _row(f"prompt_s{suffix}", statistics.median(prompts), "s"),
        _row(f"prompt_p90_s{suffix}", _p90(prompts), "s"),
    ]


def _ratios(ours: Sequence[Times], theirs: Sequence[Times]) -> list[Measurement]:
    """Dense over ours: of the medians, and the smallest and the largest of any round."""
    rounds = [
        statistics.median(dense.tokens_s) / statistics.median(own.tokens_s)
        for own, dense in zip(ours, theirs, strict=True)
    ]
    own, dense = ([s for run in runs for s in run.tokens_s] for runs in (ours, theirs))
    prompts = statistics.median(run.prompt_s for run in theirs) / statistics.median(run.prompt_s for run in ours)
    return [
        _row("speedup", statistics.median(dense) / statistics.median(own), "1"),
        _row("speedup_least", min(rounds), "1"),
        _row("speedup_most", max(rounds), "1"),
        _row("prompt_speedup", prompts, "1"),
    ]


def _weights(
    model: TimedModel, dense: TimedModel, zeros: int, token_s: float, reads: Sequence[float]
) -> list[Measurement]:
    """Bytes that a token reads, how fast, and what bytes and operations promise; the dense head is part of both."""
    count = sum(stored.shape[0] * stored.shape[1] for stored in dense.streamed())
    size = DTYPE_BYTES[dense.assembled.dtype]
    streamed, pruned = (sum(stored.nbytes for stored in part) for part in (model.streamed(), model.pruned()))
    streamed_dense = sum(stored.nbytes for stored in dense.streamed())
    pruned_dense = sum(stored.shape[0] * stored.shape[1] * size for stored in model.pruned())
    rows = [
        _row("streamed_bytes", streamed, "bytes"),
        _row("streamed_bytes_dense", streamed_dense, "bytes"),
        _row("pruned_bytes", pruned, "bytes"),
        _row("pruned_bytes_dense", pruned_dense, "bytes"),
        _row("ceiling_speedup", streamed_dense / streamed, "1"),
        _row("byte_limit_speedup", pruned_dense / pruned, "1"),
        _row("flop_promise_speedup", count / max(1, count - zeros), "1"),
        _row("effective_gb_per_s", streamed / token_s / 1e9, "GB/s"),
        _row("resident_bytes", model.resident_bytes, "bytes"),
    ]
    if reads:
        limit = statistics.median(reads)
        rows += [_row("byte_limit_s_per_token", limit, "s"), _row("byte_limit_share", limit / token_s, "1")]
    return rows


def _row(metric: str, value: float, unit: str) -> Measurement:
    return Measurement("model", "model", metric, float(value), reduction="mean", unit=unit)


def _p90(values: Sequence[float]) -> float:
    return float(np.quantile(np.asarray(values), 0.9))

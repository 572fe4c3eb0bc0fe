"""Time two ways of doing the same in turns, so that a machine that slows down slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def interleaved(ours: Callable[[], Any], baseline: Callable[[], Any], repeats: int) -> dict[str, float | int]:
    """Medians and extremes of both sides, after one unmeasured call of each.

    Returns
    -------
    dict
        ``ratio`` (median baseline / median ours), ``seconds*`` of ours, ``baseline_seconds*``, ``repeats``.
    """
    times: tuple[list[float], list[float]] = ([], [])
    ours()
    baseline()
    for _ in range(repeats):
        for side, work in enumerate((ours, baseline)):
            start = time.perf_counter()
            work()
            times[side].append(time.perf_counter() - start)
    row: dict[str, float | int] = {"ratio": statistics.median(times[1]) / statistics.median(times[0])}
    for name, values in zip(("seconds", "baseline_seconds"), times, strict=True):
        row |= {name: statistics.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}
    return row | {"repeats": repeats}


def in_turns(
    sides: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every side, all of them once in each round, after one unmeasured call of each."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for work in sides.values():
        work()
    for _ in range(repeats):
        for name, work in sides.items():
            start = clock()
            work()
            times[name].append(clock() - start)
    return times


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high

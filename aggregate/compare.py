"""Whether two cells differ: paired on the same windows, with the direction in which a figure is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from aggregate import statistics
from aggregate.floor import NATS, NO_DIFFERENCE_NATS, NO_MEASURABLE_DIFFERENCE
from aggregate.statistics import Floats

#: Which way a figure is better; figures that are not listed are neither.
BETTER = {
    "top1_agreement": "higher",
    "accuracy": "higher",
    "generation_first_divergence": "higher",
    "generation_share_equal": "higher",
    "kl": "lower",
    "nll": "lower",
    "perplexity": "lower",
    "bits_per_byte": "lower",
    "mean_rank": "lower",
    "bytes_total": "lower",
    "bytes_ratio": "lower",
    "flops_executed": "lower",
    "flops_theoretical": "lower",
    "peak_rss_bytes": "lower",
}

SAME, BETTER_THAN, WORSE_THAN, UNKNOWN = "same", "better", "worse", "not comparable"

#: Relative difference below which two figures are the same: other thread counts and batches change as much.
NO_DIFFERENCE = 1e-6


class Difference(NamedTuple):
    """Second minus first.

    Parameters
    ----------
    verdict
        ``same``, ``better``, ``worse`` (of the second) or ``not comparable``.
    value, lo, hi
        Difference and its 95 % interval; NaN where there is none. For perplexity, log of the ratio.
    why
        Why it is not comparable, or what the verdict rests on.
    """

    verdict: str
    value: float
    lo: float
    hi: float
    why: str = ""


class WindowSums:
    """Sums per window by cell and figure, from the ``windows`` table."""

    def __init__(self, windows: pd.DataFrame) -> None:
        self._by_cell: Mapping[str, pd.DataFrame] = {
            str(cell): rows.sort_values("window") for cell, rows in windows.groupby("cell_id", sort=False)
        }

    def get(self, cell_id: str, metric: str) -> tuple[Floats, Floats] | None:
        """Numerators and denominators of a figure by window, or None where it has none."""
        rows = self._by_cell.get(cell_id)
        if rows is None or f"{metric}_numerator" not in rows or rows[f"{metric}_numerator"].isna().any():
            return None
        return rows[f"{metric}_numerator"].to_numpy(float), rows[f"{metric}_denominator"].to_numpy(float)


def difference(
    metric: str, first: tuple[Floats, Floats] | None, second: tuple[Floats, Floats] | None, floor: float = 0.0
) -> Difference:
    """Compare a figure of two cells window by window.

    Parameters
    ----------
    metric
        Name of the figure.
    first, second
        Numerators and denominators by window, from `WindowSums.get`.
    floor
        Smallest difference that can be measured (`aggregate.floor`).
    """
    if first is None or second is None:
        return _unknown("it was not measured per window in both")
    if len(first[0]) != len(second[0]) or not np.array_equal(first[1], second[1]):
        return _unknown("the windows are not the same")
    top, bottom = (second[0] - first[0])[None], first[1][None]
    value = float(top.sum() / bottom.sum())
    bounds = statistics.ratio_interval(top, bottom)
    lo, hi = float(bounds.lo[0]), float(bounds.hi[0])
    scale = max(abs(first[0].sum() / bottom.sum()), abs(second[0].sum() / bottom.sum()), 1e-300)
    least = max(NO_DIFFERENCE * scale, NO_DIFFERENCE_NATS if metric in NATS else 0.0, floor)
    if abs(value) <= least:
        return Difference(SAME, value, lo, hi, NO_MEASURABLE_DIFFERENCE)
    if math.isnan(lo):
        units = len(first[0])
        if units >= statistics.FEWEST_UNITS:
            return Difference(_direction(metric, value), value, lo, hi, "every window differs by as much")
        return _unknown(f"{units} windows are {statistics.TOO_FEW}")._replace(value=value)
    if lo <= 0 <= hi:
        return Difference(SAME, value, lo, hi, "the interval of the difference holds 0")
    return Difference(_direction(metric, value), value, lo, hi, "the interval of the difference leaves 0 out")


def exact(metric: str, first: float, second: float) -> Difference:
    """Compare a figure that is counted, not estimated."""
    change = second - first
    if math.isnan(change):
        return _unknown("it was not measured in both")
    if abs(change) <= NO_DIFFERENCE * max(abs(first), abs(second)) and not _is_count(first, second):
        return Difference(SAME, change, math.nan, math.nan)
    return Difference(SAME if change == 0 else _direction(metric, change), change, math.nan, math.nan)


def not_worse_than_best(
    metric: str, cells: Iterable[tuple[str, float]], sums: WindowSums, floor: float = 0.0
) -> set[str]:
    """Cells that cannot be told from the best of them.

    Parameters
    ----------
    metric
        A figure with a direction.
    cells
        Cell ids and the figure.
    sums
        Windows of all of them; a figure without windows is compared exactly.
    floor
        Smallest difference that can be measured.
    """
    known = [(cell, value) for cell, value in cells if not math.isnan(value)]
    if metric not in BETTER or not known:
        return set()
    sign = 1.0 if BETTER[metric] == "lower" else -1.0
    best, best_value = min(known, key=lambda item: (sign * item[1], item[0]))
    chosen = {best}
    for cell, value in known:
        first, second = sums.get(best, metric), sums.get(cell, metric)
        found = exact(metric, best_value, value) if first is None else difference(metric, first, second, floor)
        if found.verdict == SAME:
            chosen.add(cell)
    return chosen


def _direction(metric: str, change: float) -> str:
    if metric not in BETTER:
        return UNKNOWN
    return BETTER_THAN if (change < 0) == (BETTER[metric] == "lower") else WORSE_THAN


def _unknown(why: str) -> Difference:
    return Difference(UNKNOWN, math.nan, math.nan, math.nan, why)


def _is_count(*values: float) -> bool:
    return all(float(value).is_integer() for value in values)

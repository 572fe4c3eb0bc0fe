"""Interval columns of the global table, from the sums that the windows table keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aggregate import statistics
from aggregate.pivot import Kind
from aggregate.statistics import Floats

#: A figure whose name with this ending is one too is compared with the dense model on the same windows.
_DENSE = "_dense"

#: Mean difference in negative log-likelihood, nats per token: log of the ratio of perplexities.
LOG_RATIO = "log_perplexity_difference"

#: Shares cannot leave [0, 1].
_SHARES = ("top1_agreement", "accuracy", "top1_differs_from_masked")

#: Nor can these fall below 0.
_POSITIVE = ("kl", "nll", "bits_per_byte", "mean_rank")


class Windows(NamedTuple):
    """Sums of one figure over windows.

    Parameters
    ----------
    position
        Cells, by place in the plan.
    numerator, denominator
        Cells x windows.
    """

    position: NDArray[np.int64]
    numerator: Floats
    denominator: Floats


def interval_columns(wide: pa.Table | None, kinds: Mapping[str, Kind], cells: int) -> dict[str, Floats]:
    """Bounds by column name, one value per cell of the plan; NaN where there is no interval.

    Parameters
    ----------
    wide
        Window rows as `aggregate.pivot` makes them.
    kinds
        Kind of every metric.
    cells
        Cells in the plan.
    """
    columns: dict[str, Floats] = {}
    if wide is None:
        return columns

    def put(name: str, position: NDArray[np.int64], values: Floats) -> None:
        columns.setdefault(name, np.full(cells, np.nan))[position] = values

    for metric, kind in kinds.items():
        if f"{metric}_numerator" not in wide.column_names or metric.endswith(_DENSE):
            continue
        twin = f"{metric}{_DENSE}"
        paired = f"{twin}_numerator" in wide.column_names
        for windows in by_cell(wide, metric):
            top, bottom, base = windows.numerator, windows.denominator, np.zeros(len(windows.position))
            if paired:
                # The interval is that of the difference to dense on the same windows; dense itself stays fixed.
                dense = _aligned(wide, twin, windows)
                top, base = top - dense.numerator, dense.numerator.sum(axis=1) / dense.denominator.sum(axis=1)
            bounds = statistics.ratio_interval(top, bottom)
            if metric == "perplexity" and paired:
                put(LOG_RATIO, windows.position, statistics.standard_error(top, bottom)[0])
                for side, values in bounds._asdict().items():
                    put(f"{LOG_RATIO}_{side}", windows.position, values)
            for side, values in bounds._asdict().items():
                put(f"{metric}_{side}", windows.position, _scaled(base + values, metric, kind.reduction))
    return columns


def _scaled(bound: Floats, metric: str, reduction: str) -> Floats:
    """A bound on the scale of its figure: exponentiated last, and where a figure of this kind can be."""
    if reduction == "exp_ratio":
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(bound))
    if metric in _SHARES:
        return np.clip(bound, 0, 1)
    return np.maximum(bound, 0) if metric in _POSITIVE else bound


def units(wide: pa.Table | None, cells: int) -> NDArray[np.int64]:
    """Windows of each cell of the plan; 0 where none were measured."""
    if wide is None:
        return np.zeros(cells, np.int64)
    return np.bincount(wide["position"].to_numpy(), minlength=cells).astype(np.int64)


def by_cell(wide: pa.Table, metric: str) -> Iterator[Windows]:
    """Sums of a metric, cells with equally many windows together; windows in number order."""
    chosen = wide.filter(wide[f"{metric}_numerator"].is_valid())
    position = chosen["position"].to_numpy()
    order = np.lexsort((np.array([int(name) for name in chosen["subject"].to_pylist()], np.int64), position))
    position = position[order]
    numerator, denominator = (chosen[f"{metric}_{part}"].to_numpy()[order] for part in ("numerator", "denominator"))
    cells, first, counts = np.unique(position, return_index=True, return_counts=True)
    for count in np.unique(counts):
        here = counts == count
        rows = first[here][:, None] + np.arange(count)
        yield Windows(cells[here], numerator[rows], denominator[rows])


def _aligned(wide: pa.Table, metric: str, windows: Windows) -> Windows:
    for found in by_cell(wide, metric):
        place = np.searchsorted(found.position, windows.position)
        if (
            len(found.position)
            and (found.position[np.minimum(place, len(found.position) - 1)] == windows.position).all()
        ):
            return Windows(windows.position, found.numerator[place], found.denominator[place])
    raise ValueError(f"{metric} was not measured on the windows of its twin")

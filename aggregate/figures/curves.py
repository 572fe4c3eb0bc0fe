"""One figure of behaviour against sparsity: shared by agreement and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from aggregate.figures.data import Combination, ModelData, missing, records
from aggregate.figures.style import METHOD_COLOURS, MOST_DASHES, Look, label, line_style, markers
from aggregate.tipping import REACHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def series(data: ModelData, metric: str) -> Iterator[tuple[int, Combination, str, pd.DataFrame]]:
    """Number of the way of pruning, itself, the variant, and the figure by sparsity, dense first.

    A variant that was measured from a later sparsity on starts there: a line from dense would pass by what the other
    variants of the same weights show.
    """
    for number, method in enumerate(data.methods):
        rows = data.over_seeds(method, metric)
        for variant in data.variants:
            found = rows[rows["variant"] == variant]
            if found.empty:
                continue
            late = found["sparsity_target"].min() > rows["sparsity_target"].min()
            # Nor is a single point joined to dense: the line would show a course that nobody measured.
            late = late or len(found) == 1
            dense = [
                [0.0, row[metric], math.nan, math.nan, 1, True]
                for row in records(data.dense)
                if not late and not missing(row[metric])
            ]
            columns = ["sparsity_target", "value", "lo", "hi", "seeds", "interval"]
            points = [*dense, *found[columns].to_numpy().tolist()]
            yield number, method, variant, pd.DataFrame(points, columns=columns)


def draw_curves(axes: Axes, data: ModelData, metric: str, scale: float = 1.0) -> None:
    """Draw a line per way of pruning and variant, with its interval or the range of its seeds, and say which."""
    bands = set()
    drawn = list(series(data, metric))
    paint = _by_method if len({method for _, method, _, _ in drawn}) > MOST_DASHES else _by_variant
    for number, method, variant, rows in drawn:
        look, dashes = paint(data, number, method, variant)
        x, y, low, high = (
            scale_ * rows[name].astype(float)
            for scale_, name in ((100, "sparsity_target"), (scale, "value"), (scale, "lo"), (scale, "hi"))
        )
        seeds = int(rows["seeds"].max())
        text = f"{label(variant)}, {label(method.label)}" + (f", mean of {seeds} seeds" if seeds > 1 else "")
        axes.plot(
            x,
            y,
            color=look.colour,
            marker=look.marker,
            markersize=5,
            linestyle=dashes if len(rows) > 1 else "none",
            linewidth=1.4,
            alpha=0.9,
            label=text,
        )
        if low.notna().any() and len(rows) == 1:
            axes.errorbar(x, y, [y - low, high - y], color=look.colour, capsize=2, linewidth=1)
            bands.add(_bounds(rows))
        elif low.notna().any():
            axes.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0)
            bands.add(_bounds(rows))
    axes.set_xlabel("requested sparsity of the prunable weights (%)")
    axes.grid(alpha=0.25)
    if bands:
        axes.annotate(
            f"bands: {' and '.join(sorted(bands))}",
            (1, 1),
            xycoords="axes fraction",
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color="#444444",
        )


def _bounds(rows: pd.DataFrame) -> str:
    ranges = (~rows["interval"].astype(bool) & rows["lo"].astype(float).notna()).any()
    return "range over calibration seeds" if ranges else "95 % intervals"


def _by_variant(data: ModelData, number: int, method: Combination, variant: str) -> tuple[Look, str]:
    """Colour tells the format, dashes the way of pruning."""
    return data.looks[variant], line_style(number)


def _by_method(data: ModelData, number: int, method: Combination, variant: str) -> tuple[Look, str]:
    """Among many ways of pruning colour tells the method, dashes pattern and settings, the marker the format."""
    names = list(dict.fromkeys(one.method for one in data.methods))
    place = names.index(method.method)
    within = [one for one in data.methods if one.method == method.method].index(method)
    several = data.pruned["variant"].nunique() > 1
    marker = data.looks[variant].marker if several else markers()[place % len(markers())]
    return Look(METHOD_COLOURS[place % len(METHOD_COLOURS)], marker), line_style(within)


def draw_tipping(axes: Axes, data: ModelData, metric: str, height: float) -> None:
    """Mark where each method leaves the tolerance: once a method, for its first variant.

    Not where it leaves it before the first sparsity that was measured: the place would only follow the grid.
    The label stands at ``height`` (a fraction of the axes), where the metric's curves leave room.
    """
    rows = data.tipping[(data.tipping["metric"] == metric) & (data.tipping["answer"] == REACHED)]
    for number, method in enumerate(data.methods):
        found = method.rows(rows)
        if found.empty:
            continue
        first = records(found)[0]
        x = 100 * first["sparsity_estimate"]
        axes.axvline(x, color="#666666", linestyle=line_style(number), linewidth=0.9, alpha=0.7)
        axes.annotate(
            f"{x:.3g} %",
            (x, height + 0.05 * (number % 3)),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=7,
            color="#444444",
        )

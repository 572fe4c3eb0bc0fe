"""One figure of behaviour against sparsity: shared by agreement and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from aggregate.figures.data import Combination, ModelData, missing, records
from aggregate.figures.style import label, line_style
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
            dense = [
                [0.0, row[metric], math.nan, math.nan, 1]
                for row in records(data.dense)
                if not late and not missing(row[metric])
            ]
            columns = ["sparsity_target", "value", "lo", "hi", "seeds"]
            points = [*dense, *found[columns].to_numpy().tolist()]
            yield number, method, variant, pd.DataFrame(points, columns=columns)


def draw_curves(axes: Axes, data: ModelData, metric: str, scale: float = 1.0) -> None:
    """Draw a line per way of pruning and variant, with its interval or the range of its seeds, and say which."""
    bands = set()
    for number, method, variant, rows in series(data, metric):
        look = data.looks[variant]
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
            linestyle=line_style(number),
            linewidth=1.4,
            alpha=0.9,
            label=text,
        )
        if low.notna().any():
            axes.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0)
            bands.add("range over calibration seeds" if seeds > 1 else "95 % intervals")
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

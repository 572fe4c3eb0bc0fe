"""One figure of behaviour against sparsity: shared by agreement and perplexity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from aggregate.figures.data import ModelData, records
from aggregate.figures.style import label, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def series(data: ModelData, metric: str) -> Iterator[tuple[int, str, str, pd.DataFrame]]:
    """Number and name of the method, variant, and its rows by sparsity, dense first."""
    for number, method in enumerate(data.methods):
        rows = data.of_method(data.pruned, method)
        for variant in data.variants:
            found = rows[(rows["variant"] == variant) & rows[metric].notna()].sort_values("sparsity_target")
            if found.empty:
                continue
            found = pd.concat([data.dense, found], ignore_index=True)
            yield number, " ".join(label(part) for part in method), variant, found


def draw_curves(axes: Axes, data: ModelData, metric: str, scale: float = 1.0) -> bool:
    """Draw a line per method and variant, its interval where there is one; False where nothing was measured."""
    drawn = False
    for number, method, variant, rows in series(data, metric):
        look = data.looks[variant]
        x = 100 * rows["sparsity_target"].astype(float)
        y = scale * rows[metric].astype(float)
        axes.plot(
            x,
            y,
            color=look.colour,
            marker=look.marker,
            markersize=5,
            linestyle=line_style(number),
            linewidth=1.4,
            alpha=0.9,
            label=f"{label(variant)}, {method}",
        )
        if f"{metric}_lo" in rows:
            low, high = (scale * rows[f"{metric}_{side}"].astype(float) for side in ("lo", "hi"))
            if low.notna().any():
                axes.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0)
        drawn = True
    if data.dense.empty and drawn:
        axes.set_xlim(left=0)
    axes.set_xlabel("requested sparsity of the prunable weights (%)")
    axes.grid(alpha=0.25)
    return drawn


def draw_tipping(axes: Axes, data: ModelData, metric: str, height: float) -> None:
    """Mark where each method leaves the tolerance: once a method, for its first variant.

    The label stands at ``height`` (a fraction of the axes), where the metric's curves leave room.
    """
    rows = data.tipping[(data.tipping["metric"] == metric) & data.tipping["sparsity_estimate"].notna()]
    for number, (method, pattern) in enumerate(data.methods):
        found = rows[(rows["method"] == method) & (rows["pattern"] == pattern)]
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

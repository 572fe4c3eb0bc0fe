"""Measured decode speed against sparsity, beside what bytes, operations and the dense head allow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from aggregate.figures.data import ModelData, records
from aggregate.figures.style import BLACK, label, mark_untrained, speed_axis, spread
from aggregate.latency import machines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "speed"
TITLE = "Decode speed against sparsity"
CAPTION = (
    "How many times as fast as the same model on our own dense kernels a token is decoded (batch 1, median over all "
    "tokens, both sides in turns within one process; bars: slowest and fastest round). Lines, for the same cells: what "
    "the bytes of the pruned matrices alone would allow, what the bytes of everything that a token reads allow, the "
    "dense head included, and what the operations of the non-zeros promise. Grey: dense references, not pruned."
)

#: Labels of dense references lie apart by this factor at least.
_APART = 1.16
#: Panels of a figure, and in a row of it.
_MOST, _WIDE = 9, 3
_LINES = (
    ("byte_limit_speedup", "byte limit of the pruned matrices", ":"),
    ("ceiling_speedup", "head-aware ceiling: all bytes of a token", "--"),
    ("flop_promise_speedup", "promise of the FLOPs", "-."),
)


def draw(data: ModelData) -> Figure | None:
    """One panel per format and machine, of the study's first method."""
    if data.latency.empty or data.first_method is None:
        return None
    pruned = data.first_method.rows(data.latency)
    panels = [
        (machine, variant, rows, own[own["variant"] == variant])
        for machine, rows in machines(data.latency)
        for own in (pruned[pruned.index.isin(rows.index)],)
        for variant in dict.fromkeys(own["variant"])
    ][:_MOST]
    if not panels:
        return None
    from matplotlib.figure import Figure

    wide = min(_WIDE, len(panels))
    high = math.ceil(len(panels) / wide)
    figure = Figure(figsize=(max(5.5, 3.6 * wide), 1.3 + 3.1 * high), layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
    places = [axes for row in grid for axes in row]
    for axes, (machine, variant, rows, own) in zip(places, panels, strict=False):
        _panel(axes, data, variant, rows, own)
        axes.set_title(f"{label(variant)} · {label(machine)}", loc="left", fontsize=8)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for row in grid:
        row[0].set_ylabel("times as fast as dense")
    for axes in places[max(0, len(panels) - wide) : len(panels)]:
        axes.set_xlabel("requested sparsity (%)")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    title = f"Decode speed, {label(data.first_method.label)} · {data.subject.title}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    if not data.trained:
        mark_untrained(figure)
    return figure


def _panel(axes: Axes, data: ModelData, variant: str, rows: pd.DataFrame, own: pd.DataFrame) -> None:
    own = own.drop_duplicates("sparsity_target").sort_values("sparsity_target")
    x, look = 100 * own["sparsity_target"], data.looks[variant]
    for name, text, line in _LINES:
        axes.plot(x, own[name], color=BLACK, linestyle=line, linewidth=1.1, marker=".", markersize=3, label=text)
    reach = [own["speedup"] - own["speedup_least"], own["speedup_most"] - own["speedup"]]
    axes.errorbar(
        x,
        own["speedup"],
        yerr=[part.clip(lower=0) for part in reach],
        color=look.colour,
        marker=look.marker,
        linewidth=1.8,
        capsize=2,
        label="measured",
        zorder=4,
    )
    axes.axhline(1, color="#888888", linewidth=0.8)
    floor = own["speedup_floor"].max()
    if floor > 1:
        axes.axhspan(1 / floor, floor, color="#888888", alpha=0.15, linewidth=0, label="no measurable difference")
    references = rows[(rows["method"] == "none") & (rows["variant"] != "dense")]
    for row, place in zip(records(references), spread(references["speedup"], _APART), strict=True):
        axes.axhline(row["speedup"], color="#aaaaaa", linewidth=0.8, zorder=1)
        axes.annotate(
            label(row["variant"]),
            (0.01, place),
            xycoords=("axes fraction", "data"),
            xytext=(0, 1),
            textcoords="offset points",
            fontsize=6.5,
            color="#444444",
        )
    speed_axis(axes, "y")
    axes.grid(alpha=0.25)

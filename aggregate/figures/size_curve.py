"""Bytes of each format against sparsity, beside every dense size that a reader would take instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from aggregate.figures.data import ModelData
from aggregate.figures.style import MIB, SIZE_REFERENCES, add_legend, label, new_figure, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "size-curve"
TITLE = "Size against sparsity"
CAPTION = (
    "Bytes of every array of the whole model against requested sparsity, for the study's first method. Horizontal: the "
    "dense model in float32, in the dtype it was published in, its source file, and the dense model with its prunable "
    "matrices in formats of fewer bits (lossy). Where a format's line crosses dense in its own dtype it breaks even."
)

#: Labels of references lie apart by this share of the largest size at least.
_APART = 0.035


def draw(data: ModelData) -> Figure | None:
    """One line per format; a study of one sparsity has nothing to draw."""
    if data.first_method is None:
        return None
    rows = data.of_method(data.pruned, data.first_method)
    rows = rows[rows["bytes_total"].notna()]
    if rows["sparsity_target"].nunique() < 2:
        return None
    figure, axes = new_figure(f"Size, {label(data.first_method.label)} · {data.subject.title}", data.trained)
    for variant in dict.fromkeys(rows["variant"]):
        one = rows[rows["variant"] == variant].sort_values("sparsity_target")
        look = data.looks[variant]
        even = one["break_even_sparsity"].dropna() if "break_even_sparsity" in one else pd.Series(dtype=float)
        axes.plot(
            100 * one["sparsity_target"],
            one["bytes_total"] / MIB,
            color=look.colour,
            marker=look.marker,
            label=f"{label(variant)}, smaller from {percent(round(even.iloc[0], 3))}" if len(even) else label(variant),
            zorder=3,
        )
    _references(axes, data.table)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requested sparsity (%)")
    axes.set_ylabel("size (MiB)")
    add_legend(figure, axes)
    return figure


def _references(axes: Axes, table: pd.DataFrame) -> None:
    """A line each, labelled at its left end; equal sizes share a line."""
    sizes: dict[float, tuple[list[str], str]] = {}
    for column, text, style in SIZE_REFERENCES:
        found = table[column].dropna() if column in table else pd.Series(dtype=float)
        if len(found) and found.max() > 0:
            sizes.setdefault(float(found.max()) / MIB, ([], style))[0].append(text)
    apart, place = _APART * axes.get_ylim()[1], 0.0
    for mib in sorted(sizes):
        texts, style = sizes[mib]
        place = max(mib, place + apart)
        axes.axhline(mib, color="#888888", linestyle=style, linewidth=1, zorder=1)
        axes.annotate(
            f"{' = '.join(texts)}: {number(mib, 4)}",
            (0.01, place),
            xycoords=("axes fraction", "data"),
            xytext=(0, 1),
            textcoords="offset points",
            fontsize=6.5,
            color="#444444",
        )

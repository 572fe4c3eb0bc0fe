"""Perplexity against sparsity, on a logarithmic axis."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from aggregate.figures.curves import draw_curves, draw_tipping
from aggregate.figures.data import ModelData
from aggregate.figures.style import add_legend, new_figure, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "perplexity"
TITLE = "Perplexity against sparsity"
CAPTION = (
    "exp of the mean negative log-likelihood (nats) of the evaluation tokens, logarithmic axis. "
    "Cells worse than guessing, above the size of the vocabulary, are counted and left out. "
    "Vertical lines: where the upper bound leaves +5 %."
)


def draw(data: ModelData) -> Figure | None:
    """Lines over sparsity, the dense model's perplexity as a horizontal line."""
    if data.pruned.empty or data.pruned["perplexity"].isna().all():
        return None
    figure, axes = new_figure(f"Perplexity · {data.subject.title}", data.trained)
    whole = data
    if data.trained:
        data = dataclasses.replace(data, table=data.table[~data.table["cell_id"].isin(worse_than_guessing(data))])
    draw_curves(axes, data, "perplexity")
    draw_tipping(axes, data, "perplexity", 0.42)
    axes.set_yscale("log")
    dense = data.table["perplexity_dense"].dropna()
    if len(dense):
        axes.axhline(
            dense.iloc[0], color="#444444", linewidth=1, linestyle=":", label=f"dense: {number(dense.iloc[0])}"
        )
    note_worse(axes, whole)
    axes.set_ylabel("perplexity")
    plain_ticks(axes)
    add_legend(figure, axes)
    return figure


def worse_than_guessing(data: ModelData) -> list[str]:
    """Cells that say nothing more and would squeeze all others; random weights are no better than they are."""
    return list(data.pruned.loc[data.pruned["mark"].fillna("").str.contains("worse than guessing"), "cell_id"])


def note_worse(axes: Axes, data: ModelData) -> None:
    """Say in a corner how many cells are worse than guessing."""
    if bad := worse_than_guessing(data):
        text = f"worse than guessing{' and not drawn' if data.trained else ''}: {len(bad)}"
        axes.annotate(text, (0.01, 0.99), xycoords="axes fraction", va="top", fontsize=7)


def plain_ticks(axes: object) -> None:
    """Write 20, 50, 100 instead of powers of ten, which few readers compare at sight."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    y = axes.yaxis  # type: ignore[attr-defined]
    low, high = y.get_view_interval()
    if high / low < 3:
        # Within half a decade a logarithmic axis is nearly linear, and round steps read best.
        y.set_major_locator(MaxNLocator(7))
    else:
        y.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high / low < 100 else (1,), numticks=12))
    y.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    y.set_minor_formatter(NullFormatter())

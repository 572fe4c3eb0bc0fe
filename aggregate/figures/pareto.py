"""What nothing else beats: perplexity against bytes, dense references always shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aggregate.figures.data import ModelData, records
from aggregate.figures.perplexity import note_worse, plain_ticks, worse_than_guessing
from aggregate.figures.style import BLACK, MIB, SIZE_REFERENCES, label, new_figure, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "pareto"
TITLE = "Perplexity against size"
CAPTION = (
    "Each point is a cell; the line joins those that no other cell beats in both size and perplexity. Hollow points "
    "are not pruned: dense, and dense in narrower types; where the study did not evaluate those, a line stands at "
    "their size. Cells worse than guessing, above the size of the vocabulary, are counted and left out. Lower left is "
    "better."
)


def draw(data: ModelData) -> Figure | None:
    """Scatter with the front as a step line."""
    rows = data.pareto[(data.pareto["cost_metric"] == "bytes_total") & (data.pareto["loss_metric"] == "perplexity")]
    bad = worse_than_guessing(data)
    if data.trained:
        rows = rows[~rows["cell_id"].isin(bad)]
    if rows["reference"].all():
        return None
    figure, axes = new_figure(f"Perplexity against size · {data.subject.title}", data.trained)
    for variant in data.variants:
        look = data.looks[variant]
        for reference, fill in ((True, "none"), (False, look.colour)):
            found = rows[(rows["variant"] == variant) & (rows["reference"] == reference)]
            if not found.empty:
                axes.scatter(
                    found["cost"] / MIB,
                    found["value"],
                    s=36,
                    marker=look.marker,
                    facecolors=fill,
                    edgecolors=look.colour,
                    linewidths=1.2,
                    label=label(variant) + (" (not pruned)" if reference else ""),
                    zorder=4 if reference else 3,
                )
    on = rows[rows["on_front"]].sort_values("cost")
    axes.step(on["cost"] / MIB, on["value"], where="post", color=BLACK, linewidth=1, alpha=0.6, label="front", zorder=2)
    reach = (on["cost"].max() - on["cost"].min()) / MIB or 1.0
    last = -math.inf
    for row in records(on)[:12]:
        # A label that would lie on its neighbour is left out: the table beside the figure has them all.
        if row["cost"] / MIB - last < 0.13 * reach:
            continue
        last = row["cost"] / MIB
        text = "" if row["reference"] else f"{percent(row['sparsity_target'])} "
        axes.annotate(
            text + label(row["method"] if not row["reference"] else row["variant"]),
            (row["cost"] / MIB, row["value"]),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=7,
        )
    for column, text, style in SIZE_REFERENCES:
        variant = text.partition(",")[0]
        if "lossy" not in text or column not in data.table or variant in set(rows["variant"]):
            continue
        size = data.table[column].max() / MIB
        if size > 0:
            # Not evaluated by this study, but it has a size: nobody should read a front without it.
            axes.axvline(size, color="#888888", linestyle=style, linewidth=1, zorder=1)
            axes.annotate(
                f"{variant}: not evaluated here",
                (size, 0.01),
                xycoords=("data", "axes fraction"),
                xytext=(2, 0),
                textcoords="offset points",
                rotation=90,
                va="bottom",
                fontsize=6.5,
                color="#444444",
            )
    axes.set_yscale("log")
    note_worse(axes, data)
    plain_ticks(axes)
    axes.set_xlabel("size (MiB)")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.25)
    axes.margins(x=0.12, y=0.12)
    axes.legend(fontsize=8, frameon=False)
    return figure

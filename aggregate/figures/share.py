"""Where a model's parameters are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aggregate.figures.data import ModelData, records
from aggregate.figures.style import GROUP_COLOURS, SKY, new_figure
from sparsehpc.core import schema

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "share"
TITLE = "Parameter share by group"
CAPTION = "Parameters of each group as a share of all, each stored tensor once: a tied head is counted as embedding."


def draw(data: ModelData) -> Figure | None:
    """Horizontal bars with share and count."""
    if data.groups.empty:
        return None
    one = {row["group"]: row for row in records(data.groups[data.groups["cell_id"] == data.groups["cell_id"].iloc[0]])}
    names = [name for name in schema.GROUPS if name in one and one[name]["params_total"] > 0]
    if not names:
        return None
    figure, axes = new_figure(
        f"Parameter share by group · {data.subject.title}", data.trained, height=1.4 + 0.45 * len(names)
    )
    for place, name in enumerate(names):
        share, count = 100 * one[name]["param_fraction"], one[name]["params_total"]
        axes.barh(place, share, color=GROUP_COLOURS.get(name, SKY))
        axes.text(share, place, f" {share:.2f} %  ({count / 1e6:,.2f} M)", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlabel("share of all parameters (%)")
    return figure

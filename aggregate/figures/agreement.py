"""How often the pruned model's first choice is the dense model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aggregate.figures.curves import draw_curves, draw_legend, draw_tipping
from aggregate.figures.data import ModelData
from aggregate.figures.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "agreement"
TITLE = "Top-1 agreement against sparsity"
CAPTION = (
    "Share of positions at which the most likely next token is the dense model's. "
    "Vertical lines: where the lower bound leaves 90 %."
)


def draw(data: ModelData) -> Figure | None:
    """Lines over sparsity, the dense model as the point at 0 %."""
    if data.pruned.empty or data.pruned["top1_agreement"].isna().all():
        return None
    figure, axes = new_figure(f"Top-1 agreement with the dense model · {data.subject.title}", data.trained)
    draw_curves(axes, data, "top1_agreement", 100.0)
    draw_tipping(axes, data, "top1_agreement", 0.02)
    axes.set_ylabel("equal top-1 choices (%)")
    axes.set_ylim(bottom=0, top=103)
    draw_legend(figure, axes)
    return figure

"""Operations per token, promised and executed, by group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aggregate.figures.data import ModelData
from aggregate.figures.style import label, mix, new_figure, percent
from sparsehpc.core import schema

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "flops"
TITLE = "FLOPs per token by group"
CAPTION = (
    "Floating-point operations per token of the matrix products, a multiply-add counted as two: of the dense model, "
    "of the non-zero weights alone (theoretical), and what each variant's kernel executes. Look-ups cost none; the "
    "operations of the attention scores grow with the context and are reported apart."
)


def draw(data: ModelData) -> Figure | None:
    """Grouped bars at the measured sparsity nearest to 30 %."""
    shown = data.shown_sparsity
    if data.first_method is None or shown is None:
        return None
    groups = data.of_method(data.groups, data.first_method)
    groups = groups[groups["sparsity_target"] == shown]
    variants = [name for name in data.variants if name in set(groups["variant"])]
    if not variants:
        return None
    first = groups[(groups["variant"] == variants[0]) & (groups["flops_dense"] > 0)].set_index("group")
    names = [name for name in schema.GROUPS if name in first.index]
    if not names:
        return None
    bars = [
        ("dense", first["flops_dense"], "#000000", ""),
        ("theoretical (non-zeros)", first["flops_theoretical"], "#bbbbbb", "////"),
    ]
    bars += [
        (
            f"executed by {label(name)}",
            groups[groups["variant"] == name].set_index("group")["flops_executed"],
            data.looks[name].colour,
            "",
        )
        for name in variants
    ]
    figure, axes = new_figure(
        f"FLOPs per token at {percent(shown)} {label(data.first_method.method)} · {data.subject.title}", data.trained
    )
    width = 0.84 / len(bars)
    for index, (text, values, colour, hatch) in enumerate(bars):
        places = np.arange(len(names)) + (index - (len(bars) - 1) / 2) * width
        heights = [values.get(name, np.nan) / 1e6 for name in names]
        axes.bar(
            places,
            heights,
            width,
            color=colour if not hatch else mix(colour, 0.3),
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
            label=text,
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("million FLOPs per token")
    axes.legend(fontsize=8, frameon=False)
    return figure

"""Zeros that were reached: over the prunable weights, the whole model and each group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aggregate.figures.data import ModelData
from aggregate.figures.style import BLUE, label, mix, new_figure, percent
from sparsehpc.core import schema

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "sparsity"
TITLE = "Sparsity, global and by group"
CAPTION = (
    "Share of weights that are exactly zero: among the prunable weights, in the whole model (each stored tensor once) "
    "and in each group of parameters, for each requested sparsity of the study's first method."
)


def draw(data: ModelData) -> Figure | None:
    """Grouped bars, a shade a requested sparsity."""
    if data.first_method is None:
        return None
    variant = data.of_method(data.pruned, data.first_method)["variant"].iloc[0]
    whole, groups = (
        frame[frame["variant"] == variant]
        for frame in (data.of_method(data.table, data.first_method), data.of_method(data.groups, data.first_method))
    )
    whole = whole.set_index("sparsity_target")
    shown = [s for s in data.some_sparsities(5) if s in whole.index]
    names = [name for name in schema.GROUPS if name in set(groups["group"])]
    if not shown or whole["sparsity"].isna().all():
        return None
    figure, axes = new_figure(f"Sparsity by {label(data.first_method.words)} · {data.subject.title}", data.trained)
    width = 0.82 / len(shown)
    for index, s in enumerate(shown):
        by_group = groups[groups["sparsity_target"] == s].set_index("group")["sparsity"]
        heights = [
            whole.loc[s, "sparsity_prunable"],
            whole.loc[s, "sparsity"],
            *(by_group.get(name, np.nan) for name in names),
        ]
        places = np.arange(len(heights)) + (index - (len(shown) - 1) / 2) * width
        values = 100 * np.nan_to_num(np.array(heights, float))
        axes.bar(
            places,
            values,
            width,
            color=mix(BLUE, 0.75 - 0.75 * (index + 1) / len(shown)),
            label=f"asked: {percent(s)}",
            edgecolor="white",
            linewidth=0.4,
        )
        for place, value in zip(places, values, strict=True):
            axes.text(place, value, f"{value:.3g}", ha="center", va="bottom", fontsize=6 if len(shown) > 3 else 7)
    axes.set_xticks(range(len(names) + 2), ["prunable\nweights", "whole\nmodel", *names], fontsize=9)
    axes.axvline(1.5, color="#999999", linewidth=0.8)
    axes.set_ylabel("weights that are zero (%)")
    axes.legend(fontsize=8, frameon=False)
    return figure

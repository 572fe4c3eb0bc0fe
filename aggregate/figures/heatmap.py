"""Which layers and projections lost their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aggregate.figures.data import ModelData
from aggregate.figures.style import label, new_figure, percent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "heatmap"
TITLE = "Sparsity by layer and projection"
CAPTION = "Share of zeros in every linear weight of the decoder, at the measured sparsity nearest to 30 %."


def linear_weights(tensors: pd.DataFrame) -> pd.DataFrame:
    """Weights of linears inside layers, with their projection (last part of the module's name)."""
    rows = tensors[
        tensors["layer"].notna()
        & tensors["group"].isin(["attention", "mlp"])
        & tensors["tensor"].str.endswith(".weight")
    ]
    return rows.assign(projection=rows["tensor"].str.split(".").str[-2], layer=rows["layer"].astype(int))


def draw(data: ModelData) -> Figure | None:
    """Image of layer against projection."""
    shown = data.shown_sparsity
    if data.first_method is None or shown is None:
        return None
    rows = data.of_method(data.tensors, data.first_method)
    rows = linear_weights(rows[rows["sparsity_target"] == shown])
    if rows.empty or rows["sparsity"].isna().all():
        return None
    rows = rows[rows["variant"] == rows["variant"].iloc[0]]
    order = list(dict.fromkeys(rows.sort_values(["group", "tensor"])["projection"]))
    grid = rows.pivot_table(index="layer", columns="projection", values="sparsity", sort=True)[order]
    figure, axes = new_figure(
        f"Sparsity by layer at {percent(shown)} {label(data.first_method.method)}\n{data.subject.title}",
        data.trained,
        width=2.5 + 0.75 * len(order),
        height=2.2 + 0.19 * len(grid),
    )
    image = axes.imshow(100 * grid.to_numpy(), aspect="auto", cmap="cividis", origin="upper", interpolation="nearest")
    axes.set_xticks(range(len(order)), [label(name) for name in order], rotation=40, ha="right", fontsize=8)
    step = max(1, len(grid) // 16)
    axes.set_yticks(range(0, len(grid), step), [str(layer) for layer in grid.index[::step]], fontsize=8)
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="zeros (%)", shrink=0.85)
    return figure

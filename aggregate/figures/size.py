"""Bytes that each variant holds, by component, against three dense references."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from aggregate.figures.data import ModelData, Record, missing, records
from aggregate.figures.style import BLACK, COMPONENTS, MIB, SIZE_REFERENCES, label, mix, new_figure, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "size"
TITLE = "Size by variant"
CAPTION = (
    "Bytes of every array a variant stores (values, indices, offsets, masks, biases), in MiB (2^20 bytes). Lines: the "
    "dense model in float32, in the dtype it was published in, the file it was published as, and the dense model with "
    "its prunable matrices in formats of fewer bits (lossy). Convention: unique."
)


def draw(data: ModelData) -> Figure | None:
    """Horizontal stacked bars, one a variant and sparsity of the study's first method."""
    rows = _bars(data)
    if rows.empty or rows["bytes_total"].isna().all():
        return None
    prefix = "bytes_total_"
    found = [name.removeprefix(prefix) for name in rows.columns if name.startswith(prefix)]
    parts = sorted(found, key=lambda name: list(COMPONENTS).index(name) if name in COMPONENTS else len(COMPONENTS))
    parts = [part for part in parts if rows[prefix + part].fillna(0).gt(0).any()]
    figure, axes = new_figure(f"Size by variant · {data.subject.title}", data.trained, height=1.8 + 0.32 * len(rows))
    for place, row in enumerate(records(rows)):
        left = 0.0
        for index, part in enumerate(parts):
            size = row[prefix + part]
            if missing(size) or not size:
                continue
            axes.barh(
                place,
                size / MIB,
                left=left,
                color=mix(data.looks[row["variant"]].colour, 0.15 + 0.75 * index / max(len(parts), 1)),
                edgecolor="white",
                linewidth=0.5,
                hatch=COMPONENTS.get(part, ("", ""))[1],
            )
            left += size / MIB
        axes.text(left, place, f" {left:,.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [_name(row) for row in records(rows)], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("size (MiB)")
    axes.margins(x=0.12)
    handles: list[Any] = [
        axes.barh(
            0,
            0,
            color=mix(BLACK, 0.15 + 0.75 * index / max(len(parts), 1)),
            hatch=COMPONENTS.get(part, ("", ""))[1],
            edgecolor="white",
            label=COMPONENTS.get(part, (label(part), ""))[0],
        )
        for index, part in enumerate(parts)
    ]
    for column, text, style in SIZE_REFERENCES:
        value = rows[column].dropna().max() if column in rows else float("nan")
        if pd.notna(value) and value > 0:
            handles.append(
                axes.axvline(
                    value / MIB,
                    color="#444444",
                    linestyle=style,
                    linewidth=1.3,
                    label=f"{text}: {value / MIB:,.1f} MiB",
                )
            )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _bars(data: ModelData) -> pd.DataFrame:
    dense = data.table[data.table["method"] == "none"]
    if data.first_method is None:
        return dense
    rows = data.of_method(data.pruned, data.first_method)
    rows = rows[rows["sparsity_target"].isin(data.some_sparsities())]
    order = {name: place for place, name in enumerate(data.variants)}
    rows = rows.assign(place=rows["variant"].map(order)).sort_values(["place", "sparsity_target"], kind="stable")
    return pd.concat([dense, rows], ignore_index=True)


def _name(row: Record) -> str:
    name = label(str(row["variant"]))
    return name if row["method"] == "none" else f"{name} {percent(row['sparsity_target'])}"

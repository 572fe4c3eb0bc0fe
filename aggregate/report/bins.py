"""Agreement and flips by position and by the dense model's margin: what the page shows of the table ``bins``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pandas as pd

from aggregate.figures.data import Combination, ModelData, Record, missing, records
from aggregate.figures.style import number, percent
from aggregate.private import scrub
from aggregate.tables import BIN_COLUMNS

#: Cells whose bins the page holds for the views, and rows of its table; the table ``bins`` holds all.
MOST_CELLS = 200
MOST_ROWS = 120

HEADINGS = ("model", "method", "sparsity asked", "variant", "by", "bin", "positions", "top-1 agreement", "KL (nats)")
FLIPS = ("lost: dense right, cell wrong", "won: dense wrong, cell right")

#: Behind the name of a model with random weights.
UNTRAINED = " (untrained)"

#: What the kinds of bins are called.
_KINDS = {"margin": "margin of the dense model (nats)", "position": "position in the window (token)"}

#: Columns of `BIN_COLUMNS` that the views draw: name in the table, name in the script.
_DRAWN = (
    ("top1_agreement", "agreement"),
    ("top1_agreement_denominator", "positions"),
    ("kl", "kl"),
    ("dense_only_right", "lost"),
    ("variant_only_right", "won"),
)


def bin_label(row: Record) -> str:
    """Edges of a bin for readers.

    >>> bin_label({"bin_from": 0.01, "bin_to": 0.1}), bin_label({"bin_from": 3.0, "bin_to": float("inf")})
    ('0.01 to 0.1', '3 and more')
    """
    low, high = row["bin_from"], row["bin_to"]
    return f"{low:g} and more" if high == float("inf") else f"{low:g} to {high:g}"


def bin_views(models: list[ModelData]) -> Iterator[dict[str, Any]]:
    """Bins of the first variant of every way of pruning and sparsity, for the script."""
    for index, data in enumerate(models):
        for method in data.methods:
            for row, part in _first_cells(data, method):
                yield {
                    "m": index,
                    "method": method.method,
                    "pattern": method.pattern,
                    "extra": method.extra,
                    "s": row["sparsity_target"],
                    "variant": row["variant"],
                    "by": {str(kind): _drawn(rows) for kind, rows in part.groupby("bin_of", sort=False)},
                }


def bin_rows(models: list[ModelData]) -> tuple[list[list[str]], bool]:
    """Rows of the static table at the sparsity that figures show, and whether there are more than it holds."""
    found = (
        [
            scrub(data.subject.model) + ("" if data.trained else UNTRAINED),
            method.label,
            percent(cell["sparsity_target"]),
            cell["variant"],
            _KINDS.get(row["bin_of"], scrub(str(row["bin_of"]))),
            bin_label(row),
            f"{row['top1_agreement_denominator']:,.0f}",
            f"{number(100 * row['top1_agreement'], 3)} %",
            number(row["kl"], 3),
            *("" if missing(row[name]) else f"{row[name]:,.0f}" for name in ("dense_only_right", "variant_only_right")),
        ]
        for data in models
        for method in data.methods
        for cell, part in _first_cells(data, method, shown=True)
        for row in records(part)
    )
    # A run may have a thousand ways of pruning: none is looked at that the page does not show.
    rows = list(itertools.islice(found, MOST_ROWS + 1))
    return rows[:MOST_ROWS], len(rows) > MOST_ROWS


def _first_cells(data: ModelData, method: Combination, shown: bool = False) -> Iterator[tuple[Record, pd.DataFrame]]:
    """First variant at every sparsity (or the one nearest to what figures show) that has bins, with its bins."""
    if data.bins.empty or not {*BIN_COLUMNS, *(name for name, _ in _DRAWN)} <= set(data.bins.columns):
        return
    cells = data.of_method(data.pruned, method)
    cells = cells[cells["cell_id"].isin(data.bin_places.keys())].drop_duplicates("sparsity_target")
    if shown and not cells.empty and data.shown_sparsity is not None:
        cells = cells.loc[[(cells["sparsity_target"] - data.shown_sparsity).abs().idxmin()]]
    for row in records(cells.sort_values("sparsity_target")):
        part = data.bins.iloc[data.bin_places[row["cell_id"]]]
        yield row, part[part["bin_of"].notna() & part["top1_agreement"].notna()]


def _drawn(rows: pd.DataFrame) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"labels": [bin_label(row) for row in records(rows)]}
    for name, short in _DRAWN:
        columns[short] = [None if missing(value) else float(f"{value:.6g}") for value in rows[name]]
    return columns

"""Rows of copied tables that figures and pages show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from aggregate.tables import read_table
from sparsehpc.core.layout import RunFolder

#: How models are called in prose.
SHARED = {"smollm2-135m": "SmolLM2-135M"}


def table_of(runs: Mapping[str, RunFolder], name: str, *, both: bool = False) -> pd.DataFrame:
    """``global`` of a run with its costs, convention ``unique`` unless ``both``; empty where there is no such run."""
    if name not in runs:
        return pd.DataFrame()
    frame: pd.DataFrame = read_table(runs[name], "global").to_pandas()
    costs = read_table(runs[name], "costs").to_pandas()
    frame = frame.merge(costs[["cell_id", *(c for c in costs if c not in frame)]], on="cell_id", how="left")
    return frame if both else frame[frame["convention"] != "study"].reset_index(drop=True)


def of(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows with these values."""
    if table.empty:
        return table
    chosen = pd.Series(data=True, index=table.index)
    for name, value in wanted.items():
        chosen &= table[name] == value
    return table[chosen]


def pruned_unstructured(table: pd.DataFrame) -> pd.DataFrame:
    """Methods as they come: attention and MLP, unstructured, no refit, each method's own allocation."""
    return of(
        table, pattern="unstructured", targets="attention+mlp", refit=False, allocation="default", variant="masked"
    )

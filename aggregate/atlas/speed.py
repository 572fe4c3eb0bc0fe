"""Decode speed on the page of results, from the copied table ``latency``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from aggregate.atlas.cells import NOTHING, as_table
from aggregate.figures.data import Record, records
from aggregate.figures.style import number, percent
from aggregate.latency import machines
from aggregate.report.speed import smaller_and_faster
from aggregate.tables import read_latency
from sparsehpc.core.layout import RunFolder

#: Runs by name.
Runs = Mapping[str, RunFolder]


def speeds(runs: Runs, name: str) -> str:
    """A line a format: how many times as fast as dense, with the slowest and the fastest round, and the bytes."""
    table = _timed(runs, name)
    if table.empty:
        return NOTHING
    references, pruned = table[table["method"] == "none"], table[table["method"] != "none"]
    steps = sorted(pruned["sparsity_target"].unique())
    lines = [[f"`{row['variant']}`", _ratio(row), *[""] * len(steps)] for row in records(references)]
    for (pattern, variant), rows in pruned.groupby(["pattern", "variant"], sort=False):
        found = {row["sparsity_target"]: _ratio(row) for row in records(rows)}
        what = f"`{variant}`" if pattern == "unstructured" else f"`{variant}`, {pattern}"
        lines.append([what, "", *(found.get(step, "") for step in steps)])
    return as_table(["stored as", "not pruned", *(percent(step) for step in steps)], lines)


def speed_words(runs: Runs, name: str) -> dict[str, Any]:
    """What sentences about that table say."""
    table = _timed(runs, name)
    if table.empty:
        return {}
    first = records(table)[0]
    (machine, rows), *_ = machines(table)
    own = rows[(rows["method"] != "none") & (rows["pattern"] == "unstructured")]
    return {
        "machine": machine,
        "isa": first["isa"],
        "prompt_tokens": first["prompt_tokens"],
        "new_tokens": first["new_tokens"],
        "repeats": first["repeats"],
        "floor": number(first["speedup_floor"], 3),
        "break_evens": "; ".join(smaller_and_faster(own)),
    }


def _timed(runs: Runs, name: str) -> pd.DataFrame:
    table = read_latency(runs[name]) if name in runs else None
    return pd.DataFrame() if table is None else table


def _ratio(row: Record) -> str:
    low, high = number(row["speedup_least"], 3), number(row["speedup_most"], 3)
    return f"{number(row['speedup'], 3)} [{low}, {high}] at {number(row['bytes_ratio'], 3)}"

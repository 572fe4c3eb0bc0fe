"""Aggregating many shards into the global and layer tables, against pandas, polars and duckdb on the same files.

Options: ``shards`` (default 10,000), ``rows`` a shard (5,000), ``folder`` to keep the shards in (a temporary one is
removed), ``baselines`` (``pandas+polars+duckdb``), ``repeats`` (1; engines in turns, medians). Every engine runs in a
process of its own, reads the same files, adds up the same rows and writes the same figures; they are compared (integers
exactly, fractions to 1e-12) before a ratio is given. ``compacted`` rows read packs of shards that `aggregate.compact`
made, and so do their baselines.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench import Row
from jobs.bench._aggregate_shards import make_shards
from sparsehpc.core.errors import SparseHPCError, UserErrors, unknown

ENGINES = ("pandas", "polars", "duckdb")

_OPTIONS = ("shards", "rows", "folder", "baselines", "repeats")

#: Relative difference of fractions that another order of additions may make.
_TOLERANCE = 1e-12
_KEYS = ["cell_id", "scope", "subject", "convention", "metric"]


def run(options: Mapping[str, str]) -> list[Row]:
    """Make the shards, run every engine, compare, and give times."""
    shards, rows = int(options.get("shards", "10000")), int(options.get("rows", "5000"))
    repeats = int(options.get("repeats", "1"))
    baselines = options.get("baselines", "+".join(ENGINES)).split("+")
    _check_options(options, baselines)
    kept = options.get("folder")
    folder = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="sparsehpc-bench-"))
    try:
        make_shards(folder / "run", shards, rows)
        found = []
        for source in ("shards", "compacted"):
            compact_s = 0.0 if source == "shards" else _measure("compact", source, folder)["wall_s"]
            for name in ("ours", *baselines):
                _measure(name, source, folder)  # so that all engines find the files in the system's cache
                if name != "ours":
                    _check_equal(folder, name)
            rounds = [{name: _measure(name, source, folder) for name in ("ours", *baselines)} for _ in range(repeats)]
            ours = _summary([one["ours"] for one in rounds])
            for name in baselines:
                theirs = _summary([one[name] for one in rounds])
                found.append(
                    {
                        "suite": "aggregate",
                        "work": f"{shards * rows:,} rows in {shards:,} shards, from {source}",
                        "baseline": f"{name} {rounds[0][name]['version']}",
                        "ratio": theirs["s"] / ours["s"],
                        "repeats": repeats,
                        "compact_s": compact_s,
                        "ours_scan_s": statistics.median(one["ours"]["scan_s"] for one in rounds),
                        **{f"ours_{key}": value for key, value in ours.items()},
                        **{f"baseline_{key}": value for key, value in theirs.items()},
                    }
                )
        return found
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _summary(measured: list[dict[str, Any]]) -> dict[str, float]:
    times = [one["wall_s"] for one in measured]
    peak_gib = max(one["peak_bytes"] for one in measured) / 2**30
    return {"s": statistics.median(times), "s_low": min(times), "s_high": max(times), "peak_gib": peak_gib}


def _check_options(options: Mapping[str, str], baselines: list[str]) -> None:
    problems = [unknown("option", name, _OPTIONS) for name in options if name not in _OPTIONS]
    for name in baselines:
        if name not in ENGINES:
            problems.append(unknown("baseline", name, ENGINES))
        elif importlib.util.find_spec(name) is None:
            problems.append(f"baseline {name} is not installed")
    if problems:
        raise UserErrors(
            "the suite cannot run", problems, "pip install polars duckdb, or --set baselines=pandas for that one alone"
        )


def _measure(engine: str, source: str, folder: Path) -> dict[str, Any]:
    """Run one engine in its own process: its time from the first file to the written result, and its memory."""
    words = [sys.executable, "-m", "jobs.bench._aggregate_engines", engine, source, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SparseHPCError(f"engine {engine} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _check_equal(folder: Path, name: str) -> None:
    ours, theirs = _figures(folder / "ours.parquet"), _figures(folder / f"{name}.parquet")
    both = ours.join(theirs.rename_columns([*_KEYS, "theirs"]), keys=_KEYS, join_type="inner")
    if not both.num_rows == ours.num_rows == theirs.num_rows:
        raise SparseHPCError(f"{name} has {theirs.num_rows} figures, ours {ours.num_rows}; both have {both.num_rows}")
    left, right = both["value"].to_numpy(), both["theirs"].to_numpy()
    whole = (left % 1 == 0) & (right % 1 == 0)
    wrong = (left[whole] != right[whole]).sum()
    part = abs(left[~whole] - right[~whole]) > _TOLERANCE * abs(left[~whole])
    if wrong or part.any() or np.isnan(right).any():
        raise SparseHPCError(f"{name} and ours differ in {int(wrong + part.sum())} of {both.num_rows} figures")


def _figures(path: Path) -> pa.Table:
    """What an engine wrote; names in one type, whatever it wrote them in."""
    table = pq.read_table(path, columns=[*_KEYS, "value"])
    return table.cast(pa.schema([*((name, pa.string()) for name in _KEYS), ("value", pa.float64())]))

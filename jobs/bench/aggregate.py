"""Aggregating many shards into the global and layer tables, against pandas, polars and duckdb on the same files.

Options: ``shards`` (default 10,000), ``rows`` a shard (5,000), ``folder`` to keep the shards in (a temporary one is
removed), ``baselines`` (``pandas+polars+duckdb``). Every engine runs in a process of its own, reads the same files,
adds up the same rows and writes the same figures; they are compared (integers exactly, fractions to 1e-12) before a
ratio is given. ``compacted`` rows read packs of shards that `aggregate.compact` made, and so do their baselines.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.bench import Row
from jobs.bench._aggregate_shards import make_shards
from sparsehpc.core.errors import SparseHPCError, UserErrors, unknown

ENGINES = ("pandas", "polars", "duckdb")

_OPTIONS = ("shards", "rows", "folder", "baselines")

#: Relative difference of fractions that another order of additions may make.
_TOLERANCE = 1e-12
_KEYS = ["cell_id", "scope", "subject", "convention", "metric"]


def run(options: Mapping[str, str]) -> list[Row]:
    """Make the shards, run every engine, compare, and give times."""
    shards, rows = int(options.get("shards", "10000")), int(options.get("rows", "5000"))
    baselines = options.get("baselines", "+".join(ENGINES)).split("+")
    _check_options(options, baselines)
    kept = options.get("folder")
    folder = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="sparsehpc-bench-"))
    try:
        make_shards(folder / "run", shards, rows)
        found = []
        for source in ("shards", "compacted"):
            compact_s = 0.0 if source == "shards" else _measure("compact", source, folder)["wall_s"]
            ours = _measure("ours", source, folder)
            for name in baselines:
                theirs = _measure(name, source, folder)
                _check_equal(folder, name)
                found.append(
                    {
                        "suite": "aggregate",
                        "work": f"{shards * rows:,} rows in {shards:,} shards to global and layers, from {source}",
                        "baseline": f"{name} {theirs['version']}",
                        "ratio": theirs["wall_s"] / ours["wall_s"],
                        "ours_s": ours["wall_s"],
                        "ours_scan_s": ours["scan_s"],
                        "baseline_s": theirs["wall_s"],
                        "compact_s": compact_s,
                        "ours_peak_gib": ours["peak_bytes"] / 2**30,
                        "baseline_peak_gib": theirs["peak_bytes"] / 2**30,
                    }
                )
        return found
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


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
    ours, theirs = (
        pq.read_table(folder / f"{engine}.parquet").to_pandas().set_index(_KEYS) for engine in ("ours", name)
    )
    if len(ours) != len(theirs):
        raise SparseHPCError(f"{name} has {len(theirs)} figures, ours has {len(ours)}")
    left, right = ours["value"].to_numpy(), theirs["value"].reindex(ours.index).to_numpy()
    whole = (left % 1 == 0) & (right % 1 == 0)
    wrong = (left[whole] != right[whole]).sum()
    part = abs(left[~whole] - right[~whole]) > _TOLERANCE * abs(left[~whole])
    if wrong or part.any() or np.isnan(right).any():
        raise SparseHPCError(f"{name} and ours differ in {int(wrong + part.sum())} of {len(left)} figures")

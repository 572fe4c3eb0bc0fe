"""The small copy of a run's tables that pages of results are made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aggregate.describe import provenance_of
from aggregate.private import scrub
from aggregate.tables import TABLES_VERSION, read_latency, read_table
from sparsehpc.core.errors import UserErrors
from sparsehpc.core.files import write_atomically, write_text
from sparsehpc.core.layout import RunFolder

#: Tables that are copied, beside ``latency`` of a study that times something.
TABLES = ("global", "groups", "windows", "costs", "coverage", "seeds", "tipping")

#: Of windows only the sums that differences between two cells need.
_WINDOW_FIGURES = ("perplexity", "top1_agreement", "kl")

#: What is dropped: names of jobs and machines, and free text of failures.
_DROPPED = {"resource", "job_id", "attempt", "started_at", "measurements_rows", "snapshot_digest", "reason", "cause"}

#: What is kept of where figures come from.
_PROVENANCE = ("sparsehpc", "commit", "python", "platform", "study", "study_digest", "versions")


def keep_tables(runs: Sequence[RunFolder], folder: Path) -> None:
    """Copy the tables of runs into ``folder/NAME/tables``; copies of other runs go.

    Raises
    ------
    UserErrors
        Runs that are not aggregated, hold no finished cell, or share a name.
    """
    names = [run.root.resolve().name for run in runs]
    problems = [f"two runs are called {name}" for name in sorted(set(names)) if names.count(name) > 1]
    tables = {}
    for name, run in zip(names, runs, strict=True):
        absent = [table for table in TABLES if not (run.tables / f"{table}.parquet").is_file()]
        if absent:
            problems.append(f"{run.root} has no table {', '.join(absent)}; sparsehpc aggregate {run.root} makes them")
            continue
        tables[name] = {table: _small(table, read_table(run, table)) for table in TABLES}
        if read_latency(run) is not None:
            tables[name]["latency"] = _small("latency", read_table(run, "latency"))
        if not tables[name]["global"].num_rows:
            problems.append(f"{run.root} has no finished cell")
    if problems:
        raise UserErrors("the tables cannot be copied", problems)
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in names:
                shutil.rmtree(path)
    for name, run in zip(names, runs, strict=True):
        kept = RunFolder(folder / name)
        for table, content in tables[name].items():
            write_atomically(kept.tables / f"{table}.parquet", partial(_write, content))
        found = {key: value for key, value in provenance_of(run).items() if key in _PROVENANCE}
        write_text(kept.provenance, scrub(json.dumps(found, indent=1, sort_keys=True)) + "\n")


def kept_runs(folder: Path) -> dict[str, RunFolder]:
    """Copies by name."""
    if not folder.is_dir() or not (names := sorted(path.name for path in folder.iterdir() if path.is_dir())):
        raise UserErrors("there are no results", [f"{folder} holds no tables"], "make results")
    return {name: RunFolder(folder / name) for name in names}


def _small(name: str, table: pa.Table) -> pa.Table:
    columns = [column for column in table.column_names if column not in _DROPPED]
    if name == "windows":
        sums = {f"{figure}_{part}" for figure in _WINDOW_FIGURES for part in ("numerator", "denominator")}
        columns = [column for column in columns if column in {"cell_id", "window"} | sums]
    return table.select(columns).replace_schema_metadata({"sparsehpc.tables_version": TABLES_VERSION})


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table.combine_chunks(), path, compression="zstd", compression_level=19)

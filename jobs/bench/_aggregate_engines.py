"""The engines of the suite ``aggregate``: each reads the same files and writes the same figures, once, in its process.

A figure is one cell, scope (``model`` or ``layer``; window rows are summed into ``model``), subject, convention and
metric. Called as ``python -m jobs.bench._aggregate_engines ENGINE SOURCE FOLDER``; prints one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparsehpc.core.layout import RunFolder
from sparsehpc.core.machine import peak_rss_bytes

_KEYS = ["cell_id", "scope", "subject", "convention", "metric", "reduction"]
_READ = [*_KEYS, "numerator", "denominator"]
_BATCH = 100


def files(folder: Path, source: str) -> list[str]:
    """What every engine reads."""
    pattern = "cells/*/*/measurements.parquet" if source == "shards" else "compact/*.measurements.parquet"
    return sorted(str(path) for path in (folder / "run").glob(pattern))


#: How long our own look at the cells' rows took; other engines do not read them.
scan_s = 0.0


def ours(folder: Path, source: str) -> Any:
    """`aggregate.reduce` over the coverage of the run, digests checked; packs are used where they are there."""
    from aggregate.reduce import reduce_shards
    from aggregate.scan import done_positions, scan

    run = RunFolder(folder / "run")
    global scan_s
    started = time.perf_counter()
    coverage = scan(run, packs=source != "shards")
    scan_s = time.perf_counter() - started
    rows = [row for row in coverage.rows if row is not None]
    reduced = reduce_shards(run, done_positions(coverage), rows, scopes=("model", "layer"), packs=coverage.packs)
    parts = []
    cells = coverage.plan["cell_id"].combine_chunks()
    for scope in ("model", "layer"):
        wide = reduced.wide[scope]
        unique = wide.filter(pc.equal(wide["convention"], "unique"))
        for metric in wide.column_names[5:]:
            # What has no convention stands under both here: the others have it once.
            blank = metric.startswith("behaviour")
            rows_of = unique if blank else wide
            convention = pa.repeat("", rows_of.num_rows) if blank else rows_of["convention"]
            parts.append(
                pa.table(
                    {
                        "cell_id": _coded(rows_of["position"], cells),
                        "scope": pa.repeat(scope, rows_of.num_rows).dictionary_encode(),
                        "subject": rows_of["subject"].dictionary_encode(),
                        "convention": convention.dictionary_encode(),
                        "metric": pa.repeat(metric, rows_of.num_rows).dictionary_encode(),
                        "value": rows_of[metric],
                    }
                )
            )
    return pa.concat_tables(parts)


def _coded(positions: pa.ChunkedArray, cells: pa.Array) -> pa.Array:
    """Names of cells as codes, which weigh a sixteenth of the names."""
    return pa.DictionaryArray.from_arrays(positions.combine_chunks().cast(pa.int32()), cells)


def pandas(folder: Path, source: str) -> Any:
    """A hundred files at a time, as one writes it with pandas: read, filter, group, add."""
    import pandas as pd

    found, names = [], files(folder, source)
    step = _BATCH if source == "shards" else 1
    for start in range(0, len(names), step):
        frame = pd.concat([pd.read_parquet(name, columns=_READ) for name in names[start : start + step]])
        frame = frame[frame["scope"].isin(["model", "layer", "window"])]
        window = frame["scope"] == "window"
        frame.loc[window, ["scope", "subject"]] = "model"
        found.append(frame.groupby(_KEYS, sort=False, observed=True)[["numerator", "denominator"]].sum().reset_index())
    frame = pd.concat(found)
    ratio = frame["reduction"] == "ratio"
    frame["value"] = np.where(ratio, frame["numerator"] / frame["denominator"], frame["numerator"])
    return pa.Table.from_pandas(frame[[*_KEYS[:-1], "value"]], preserve_index=False)


def polars(folder: Path, source: str) -> Any:
    """One lazy query over all files."""
    import polars as pl

    window = pl.col("scope") == "window"
    model = pl.lit("model")
    frame = (
        pl.scan_parquet(files(folder, source))
        .filter(pl.col("scope").is_in(["model", "layer", "window"]))
        .with_columns(
            scope=pl.when(window).then(model).otherwise(pl.col("scope")),
            subject=pl.when(window).then(model).otherwise(pl.col("subject")),
        )
        .group_by(_KEYS)
        .agg(pl.col("numerator").sum(), pl.col("denominator").sum())
        .with_columns(
            value=pl.when(pl.col("reduction") == "ratio")
            .then(pl.col("numerator") / pl.col("denominator"))
            .otherwise(pl.col("numerator"))
        )
        .select([*_KEYS[:-1], "value"])
        .collect(engine="streaming")
    )
    return frame.to_arrow()


def duckdb(folder: Path, source: str) -> Any:
    """One SQL query over all files."""
    import duckdb as engine

    connection = engine.connect()
    listed = ", ".join(f"'{name}'" for name in files(folder, source))
    query = f"""
        SELECT cell_id, CASE WHEN scope = 'window' THEN 'model' ELSE scope END AS scope,
               CASE WHEN scope = 'window' THEN 'model' ELSE subject END AS subject, convention, metric,
               CASE WHEN any_value(reduction) = 'ratio' THEN sum(numerator) / sum(denominator)
                    ELSE sum(numerator) END AS value
        FROM read_parquet([{listed}]) WHERE scope IN ('model', 'layer', 'window')
        GROUP BY ALL
    """  # noqa: S608 - names of our own files
    return connection.sql(query).to_arrow_table()


def compact(folder: Path, source: str) -> None:
    """Make the packs."""
    from aggregate.compact import compact_run

    compact_run(RunFolder(folder / "run"))


def main(engine: str, source: str, folder: str) -> None:
    """Run one engine and say how long it took."""
    calls = {"ours": ours, "pandas": pandas, "polars": polars, "duckdb": duckdb, "compact": compact}
    own = {"ours": "aggregate.reduce", "compact": "aggregate.compact"}
    version = getattr(importlib.import_module(own.get(engine, engine)), "__version__", "")
    started = time.perf_counter()
    table = calls[engine](Path(folder), source)
    if table is not None:
        pq.write_table(table, Path(folder) / f"{engine}.parquet")
    wall_s = time.perf_counter() - started
    peak = peak_rss_bytes()  # not ru_maxrss, which a process takes over from the one that started it
    sys.stdout.write(json.dumps({"wall_s": wall_s, "scan_s": scan_s, "peak_bytes": peak, "version": version}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

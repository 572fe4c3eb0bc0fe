"""The summary tables: keys of the cells, figures as columns, in one order; Parquet and CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from aggregate.findings import findings
from aggregate.floor import spread
from aggregate.intervals import interval_columns, units
from aggregate.pivot import INDEX, Kind
from aggregate.reduce import Reduced
from aggregate.scan import Coverage
from aggregate.statistics import FEWEST_UNITS, TOO_FEW
from sparsehpc.core import schema
from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_atomically
from sparsehpc.core.layout import RunFolder

#: Rises when a column changes its name or meaning; kept in the metadata of every Parquet file.
TABLES_VERSION = "1"

#: Tables by the scope they show.
SCOPE_OF = {
    "global": "model",
    "groups": "group",
    "layers": "layer",
    "tensors": "tensor",
    "windows": "window",
    "bins": "bin",
}

#: Tables that answer a question with the others.
ANSWERS = ("tipping", "seeds", "pareto")

TABLES = (*SCOPE_OF, "coverage", "costs", "latency", *ANSWERS)

#: Keys that every table shows first.
KEYS = ("model", "dtype", "method", "pattern", "sparsity_target", "variant", "calibration_seed")

#: Further axes of a cell, behind the keys in every table.
AXES = ("options", "allocation", "targets", "refit", "true_sequential")

#: What `global` also says about a cell.
ABOUT = ("trained", "lossless", "kernel", "vocabulary_tokens", "mark", "published_dtype", "source_bytes")

#: Columns that every reader may rely on in `global`; null where nothing was measured.
GLOBAL_COLUMNS = (
    "params_total",
    "params_nonzero",
    "sparsity",
    "sparsity_prunable",
    "bytes_total",
    "bytes_ratio",
    "flops_dense",
    "flops_theoretical",
    "flops_executed",
    "top1_agreement",
    "kl",
    "perplexity",
    "perplexity_dense",
    "bits_per_byte",
)

#: The same for `groups`, `layers` and `tensors`.
STRUCTURE_COLUMNS = (
    "params_total",
    "params_nonzero",
    "sparsity",
    "param_fraction",
    "bytes_total",
    "flops_dense",
    "flops_theoretical",
    "flops_executed",
)

#: What `bins` says about its rows: the whole name, what it is a bin of, and its edges (the upper one left out).
BIN_COLUMNS = ("bin", "bin_of", "bin_from", "bin_to")

#: ``margin [0.1, 0.3)``
_BIN = re.compile(r"(?P<of>.+) \[(?P<low>[^,\s]+), (?P<high>[^)\s]+)\)")

_SUBJECT = {"group": "group", "layer": "layer", "tensor": "tensor", "window": "window", "bin": "bin"}
_CONVENTION_ORDER = {"unique": 0, "study": 1, "": 2}

#: Wide rows of a scope that no cell has.
_NOTHING = pa.table(
    {
        "position": pa.array([], pa.int64()),
        "subject": pa.array([], pa.string()),
        "layer": pa.array([], pa.int32()),
        "group": pa.array([], pa.string()),
        "convention": pa.array([], pa.string()),
    }
)

#: Rows of a Parquet row group: fixed, so that the file does not show how the work was cut.
_ROW_GROUP = 1 << 17
_EXACT = 2**53

#: Units of things that are counted.
_COUNTED = ("bytes", "weights", "flops", "tokens")


def build_tables(coverage: Coverage, reduced: Reduced) -> dict[str, pa.Table]:
    """All summary tables of a run, rows in plan order."""
    keys = coverage.plan.drop_columns(["spec", "order", "kind"])
    windows = reduced.wide.get("window")
    bounds = interval_columns(windows, reduced.kinds, keys.num_rows)
    about = _about(coverage, windows)
    tables = {}
    for name, scope in SCOPE_OF.items():
        required = {"global": GLOBAL_COLUMNS, "windows": (), "bins": ()}.get(name, STRUCTURE_COLUMNS)
        wide = reduced.wide.get(scope)
        if wide is None:
            if name == "bins":
                continue
            wide = _NOTHING
        if scope == "model":
            wide = _with_bounds(spread(wide, keys), bounds)
        tables[name] = _table(name, scope, _sorted(wide), keys, about, reduced.kinds, required)
    tables["coverage"] = coverage.table()
    tables["costs"] = _costs(coverage)
    named = None if windows is None else windows.append_column("cell_id", keys["cell_id"].take(windows["position"]))
    return tables | findings(tables["global"], named)


def write_tables(run: RunFolder, tables: Mapping[str, pa.Table]) -> None:
    """Write each table as ``NAME.parquet`` and ``NAME.csv``, whole or not at all."""
    for name, table in tables.items():
        stamped = table.replace_schema_metadata({"sparsehpc.tables_version": TABLES_VERSION})
        whole = stamped.combine_chunks()
        write_atomically(
            run.tables / f"{name}.parquet",
            partial(_write_parquet, whole),
        )
        write_atomically(run.tables / f"{name}.csv", partial(pa_csv.write_csv, whole))
    for name in set(TABLES) - set(tables):
        for suffix in ("parquet", "csv"):
            (run.tables / f"{name}.{suffix}").unlink(missing_ok=True)


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", row_group_size=_ROW_GROUP)


def read_table(run: RunFolder, name: str) -> pa.Table:
    """One summary table of a run; `UserError` where it was not aggregated."""
    path = run.tables / f"{name}.parquet"
    try:
        return pq.read_table(pa.BufferReader(path.read_bytes()))
    except FileNotFoundError as error:
        raise UserError(f"{run.root} has no table {name!r}", f"sparsehpc aggregate {run.root}") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}", f"sparsehpc aggregate {run.root}") from error


def read_latency(run: RunFolder) -> pd.DataFrame | None:
    """The ``latency`` table, or None where the study times nothing."""
    if not (run.tables / "latency.parquet").is_file():
        return None
    return pd.DataFrame(read_table(run, "latency").to_pandas())


def _about(coverage: Coverage, windows: pa.Table | None) -> pa.Table:
    fields = [schema.CELL.field(name).with_nullable(True) for name in ABOUT]
    columns = {
        field.name: pa.array([None if r is None else r[field.name] for r in coverage.rows], field.type)
        for field in fields
    }
    count = units(windows, len(coverage.rows))
    too_few = [f"{TOO_FEW} ({n} windows)" if 0 < n < FEWEST_UNITS else "" for n in count]
    return pa.table({**columns, "interval_units": pa.array(count), "interval_note": pa.array(too_few, pa.string())})


def _with_bounds(wide: pa.Table, bounds: Mapping[str, Any]) -> pa.Table:
    position = wide["position"].to_numpy()
    for name, values in bounds.items():
        here = values[position]
        wide = wide.append_column(name, pa.array(here, pa.float64(), mask=np.isnan(here)))
    return wide


def _costs(coverage: Coverage) -> pa.Table:
    skip = {*schema.KEYS.names, "notes", "provenance", "measurements_sha256", "row_sha256"}
    fields = [field for field in schema.CELL if field.name not in skip]
    done = [index for index, row in enumerate(coverage.rows) if row is not None]
    rows = [row for row in coverage.rows if row is not None]
    table = coverage.plan.select([*KEYS, *AXES, "device", "resource"]).take(pa.array(done, pa.int64()))
    for field in fields:
        table = table.append_column(field.name, pa.array([row[field.name] for row in rows], field.type))
    return table.append_column("cell_id", pa.array([row["cell_id"] for row in rows], pa.string()))


def _with_bounds_beside(names: list[str]) -> list[str]:
    """Put the bounds of an interval behind their figure."""
    known = set(names)
    ordered = []
    for name in names:
        if name.endswith(("_lo", "_hi")) and name[:-3] in known:
            continue
        ordered += [name, *(f"{name}_{side}" for side in ("lo", "hi") if f"{name}_{side}" in known)]
    return ordered


def _sorted(wide: pa.Table) -> pa.Table:
    """Plan order, then convention, layer, group, subject: no dependence on how rows lay in a shard."""
    convention = [_CONVENTION_ORDER[name] for name in wide["convention"].to_pylist()]
    rank = {name: place for place, name in enumerate(schema.GROUPS)}
    group = [rank.get(name, len(rank)) for name in wide["group"].to_pylist()]
    subject = wide["subject"].to_pylist()
    names = sorted(set(subject), key=_natural)
    place = {name: index for index, name in enumerate(names)}
    order = np.lexsort(
        (
            np.array([place[name] for name in subject], np.int64),
            np.array(group, np.int64),
            pc.fill_null(wide["layer"], -1).to_numpy(),
            np.array(convention, np.int64),
            wide["position"].to_numpy(),
        )
    )
    return wide.take(pa.array(order, pa.int64()))


def _natural(subject: str) -> tuple[int, str, float, str]:
    """Numbers in number order, before words; bins of one thing by their lower edge."""
    try:
        return (0, "", float(subject), subject)
    except ValueError:
        of, low, _ = _edges(subject)
        return (1, subject, 0.0, subject) if of is None or low is None else (1, of, low, subject)


def _edges(subject: str) -> tuple[str | None, float | None, float | None]:
    """What a bin is of, and its edges; None where its name does not say.

    >>> _edges("margin [0.1, inf)"), _edges("low")
    (('margin', 0.1, inf), (None, None, None))
    """
    found = _BIN.fullmatch(subject)
    try:
        return (found["of"], float(found["low"]), float(found["high"])) if found else (None, None, None)
    except ValueError:
        return None, None, None


def _table(
    name: str,
    scope: str,
    wide: pa.Table,
    keys: pa.Table,
    about: pa.Table,
    kinds: Mapping[str, Kind],
    required: Sequence[str],
) -> pa.Table:
    position = wide["position"]
    columns: dict[str, Any] = {key: keys[key].take(position) for key in KEYS}
    if scope not in ("window", "bin"):
        columns["convention"] = wide["convention"]
    if scope == "tensor":
        columns |= {"tensor": wide["subject"], "layer": wide["layer"], "group": wide["group"]}
    elif scope == "layer":
        columns["layer"] = wide["subject"].cast(pa.int32())
    elif scope == "window":
        columns["window"] = wide["subject"].cast(pa.int32())
    elif scope != "model":
        columns[_SUBJECT[scope]] = wide["subject"]
    if scope == "bin":
        edges = [_edges(subject) for subject in wide["subject"].to_pylist()]
        for place, (column, kind) in enumerate(
            zip(BIN_COLUMNS[1:], (pa.string(), pa.float64(), pa.float64()), strict=True)
        ):
            columns[column] = pa.array([found[place] for found in edges], kind)
    metrics = [column for column in wide.column_names if column not in INDEX]
    names = _with_bounds_beside([*required, *(metric for metric in metrics if metric not in required)])
    for metric in names:
        values = wide[metric] if metric in metrics else pa.nulls(wide.num_rows, pa.float64())
        columns[metric] = _whole_numbers(values, metric, kinds)
    for column in about.column_names if name == "global" else ("trained",):
        columns[column] = about[column].take(position)
    rest = (
        (*AXES, *(key for key in keys.column_names if key not in (*KEYS, *AXES, "cell_id")))
        if name == "global"
        else AXES
    )
    columns |= {key: keys[key].take(position) for key in rest}
    columns["cell_id"] = keys["cell_id"].take(position)
    table = pa.table(columns)
    return table.cast(pa.schema([_with_unit(field, kinds) for field in table.schema]))


def _whole_numbers(values: pa.ChunkedArray, metric: str, kinds: Mapping[str, Kind]) -> pa.ChunkedArray:
    """Counts as integers: a number of weights or bytes is no fraction."""
    kind = _kind(metric, kinds)
    if kind is None or not (kind.reduction == "sum" or (kind.reduction == "max" and kind.unit in _COUNTED)):
        return values
    array = values.drop_null().to_numpy()
    if len(array) and (not np.isfinite(array).all() or (np.abs(array) >= _EXACT).any() or (array % 1 != 0).any()):
        return values
    return values.cast(pa.int64())


def _kind(column: str, kinds: Mapping[str, Kind]) -> Kind | None:
    """Kind of a column, components and window sums included."""
    if column in kinds:
        return kinds[column]
    owners = [metric for metric in kinds if column.startswith(f"{metric}_")]
    return kinds[max(owners, key=len)] if owners else None


def _with_unit(field: pa.Field, kinds: Mapping[str, Kind]) -> pa.Field:
    kind = _kind(field.name, kinds) if field.name not in schema.KEYS.names else None
    return field if kind is None else field.with_metadata({"unit": kind.unit, "reduction": kind.reduction})

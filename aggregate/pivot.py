"""Long measurements of a cell -> one wide row per subject, whatever the order of its rows.

How rows become figures depends on their text alone (scope, subject, metric, ...), and the shards of one study repeat
few texts. So the text is worked out once, into a `Pivot`, and every further shard only passes its numbers through it.

Numbers that are added up are sorted first, and added one after the other. So a sum depends on which rows there are,
never on how they lie, on how many cells are worked on at once, or on where a partition ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsehpc.core import schema
from sparsehpc.core.errors import SparseHPCError

#: Scopes that become tables.
SCOPES = ("model", "group", "layer", "tensor", "window", "bin")

#: Scopes whose sums stay beside the value, because intervals are computed from them.
WITH_SUMS = ("window", "bin")

#: Columns of every wide table that are no metric.
INDEX = ("position", "subject", "layer", "group", "convention")

#: Conventions with a name; what has none is shown under each of them.
_NAMED = ("unique", "study")

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


class Kind(NamedTuple):
    """How the rows of a metric combine, and their unit."""

    reduction: str
    unit: str


class _Line(NamedTuple):
    """A row of a wide table, without the cell's place in the plan."""

    subject: str
    layer: int | None
    group: str
    convention: str


class _Column(NamedTuple):
    """A column of a wide table: a metric or a component of one."""

    name: str
    reduction: str


class _Fields(NamedTuple):
    """Fields of a wide table that as many rows are added into.

    Parameters
    ----------
    source
        Rows of the shard: fields x rows each.
    target
        Line x columns + column of each field.
    """

    source: Ints
    target: Ints


@dataclass(frozen=True, slots=True)
class _Table:
    """Where the rows of one scope go.

    Parameters
    ----------
    lines, columns
        Of the wide table.
    fields
        What is added into it.
    """

    lines: tuple[_Line, ...]
    columns: tuple[_Column, ...]
    fields: tuple[_Fields, ...]


class Pivot:
    """What the rows of a shard mean, worked out from their text.

    Parameters
    ----------
    text
        Columns of `schema.MEASUREMENTS` except ``cell_id``, ``numerator`` and ``denominator``.
    scopes
        Which are wanted.

    Attributes
    ----------
    kinds
        Reduction and unit by metric.
    """

    def __init__(self, text: pa.Table, scopes: Collection[str] = SCOPES) -> None:
        rows = list(enumerate(_records(text)))
        if unknown := {row["scope"] for _, row in rows} - set(schema.SCOPES):
            raise SparseHPCError(f"unknown scope {min(unknown)!r}; legal: {', '.join(schema.SCOPES)}")
        self.kinds = _kinds(row for _, row in rows)
        by_scope: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
        for number, row in rows:
            by_scope.setdefault(row["scope"], []).append((number, row))
        own = {row["metric"] for _, row in by_scope.get("model", ())}
        sums = [
            (number, {**row, "subject": "model", "layer": None})
            for number, row in by_scope.get("window", ())
            if row["metric"] not in own
        ]
        if sums:
            by_scope["model"] = [*by_scope.get("model", ()), *sums]
        self._tables = {
            scope: _arrange(by_scope[scope], self.kinds) for scope in SCOPES if scope in by_scope and scope in scopes
        }

    def tables(
        self, positions: Sequence[int], numerators: Sequence[Floats], denominators: Sequence[Floats]
    ) -> Iterator[tuple[str, pa.Table]]:
        """Scope and wide table of cells of this arrangement: their places in the plan, and their numbers by row."""
        numerator, denominator = np.stack(numerators), np.stack(denominators)
        for scope, table in self._tables.items():
            yield scope, _wide(table, positions, numerator, denominator, scope in WITH_SUMS)


def pivot(table: pa.Table, position: int = 0, scopes: Collection[str] = SCOPES) -> dict[str, pa.Table]:
    """Wide tables by scope of one cell's measurements (`schema.MEASUREMENTS`).

    Returns
    -------
    dict
        By scope: `INDEX`, then float64 columns: each metric by its name, each component of it as
        ``metric_component``; for windows and bins also ``metric_numerator`` and ``metric_denominator``.
        Window rows are also reduced to the model scope, for every metric the cell has no model row of.
    """
    found = Pivot(table.drop_columns(["cell_id", "numerator", "denominator"]), scopes)
    return dict(found.tables([position], [table["numerator"].to_numpy()], [table["denominator"].to_numpy()]))


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Wide tables of one scope below each other; a column that one lacks is null there."""
    # Metrics differ between cells, and so do columns; their order must not depend on who comes first.
    table = pa.concat_tables(tables, promote_options="default")
    return table.select([*INDEX, *sorted(set(table.column_names) - set(INDEX))])


def _records(text: pa.Table) -> Iterator[dict[str, Any]]:
    names = text.column_names
    columns = [column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column for column in text.columns]
    for values in zip(*(column.to_pylist() for column in columns), strict=True):
        yield dict(zip(names, values, strict=True))


def _kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for row in rows:
        kind = Kind(row["reduction"], row["unit"])
        if kinds.setdefault(row["metric"], kind) != kind:
            raise SparseHPCError(f"metric {row['metric']!r} combines in two ways: {kinds[row['metric']]} and {kind}")
    for metric, kind in kinds.items():
        if kind.reduction not in schema.REDUCTIONS:
            raise SparseHPCError(
                f"metric {metric!r} has reduction {kind.reduction!r}; legal: {', '.join(schema.REDUCTIONS)}"
            )
    return kinds


def _arrange(rows: Sequence[tuple[int, Mapping[str, Any]]], kinds: Mapping[str, Kind]) -> _Table:
    """Lines, columns, and which row is added where."""
    conventions: dict[str, set[str]] = {}
    about: dict[str, tuple[int | None, str]] = {}
    for _, row in rows:
        conventions.setdefault(row["subject"], set()).add(row["convention"])
        layer, group = about.get(row["subject"], (None, ""))
        about[row["subject"]] = (row["layer"] if layer is None else layer, group or row["group"])
    lines: dict[_Line, int] = {}
    columns: dict[_Column, int] = {}
    metrics = {row["metric"] for _, row in rows}
    placed: list[tuple[int, int, int]] = []
    for number, row in rows:
        subject, metric = row["subject"], row["metric"]
        named = [name for name in _NAMED if name in conventions[subject]]
        for convention in named if not row["convention"] and named else [row["convention"]]:
            line = lines.setdefault(_Line(subject, *about[subject], convention), len(lines))
            for name in [metric, *([f"{metric}_{row['component']}"] if row["component"] else [])]:
                if name in INDEX or (name != metric and name in metrics):
                    raise SparseHPCError(
                        f"two figures want the column {name!r}: a metric and a component of another, or a key"
                    )
                column = columns.setdefault(_Column(name, kinds[metric].reduction), len(columns))
                placed.append((number, line, column))
    rows_of: dict[int, list[int]] = {}
    for number, line, column in placed:
        rows_of.setdefault(line * len(columns) + column, []).append(number)
    by_count: dict[int, list[int]] = {}
    for target, numbers in rows_of.items():
        by_count.setdefault(len(numbers), []).append(target)
    fields = [
        _Fields(np.array([rows_of[target] for target in targets], np.int64), np.array(targets, np.int64))
        for targets in by_count.values()
    ]
    return _Table(tuple(lines), tuple(columns), tuple(fields))


def _sums(table: _Table, numbers: Floats) -> Floats:
    """Sum of the rows of every field: cells x fields, NaN where a field has no row."""
    sums = np.full((len(numbers), len(table.lines) * len(table.columns)), np.nan)
    for source, target in table.fields:
        parts = numbers[:, source]
        if source.shape[1] == 1:
            sums[:, target] = parts[..., 0]
            continue
        parts = np.ascontiguousarray(np.moveaxis(np.sort(parts, axis=-1), -1, 0))
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        sums[:, target] = total
    return sums


def _largest(table: _Table, numbers: Floats) -> Floats:
    largest = np.full((len(numbers), len(table.lines) * len(table.columns)), np.nan)
    for source, target in table.fields:
        largest[:, target] = numbers[:, source].max(axis=-1)
    return largest


def _wide(table: _Table, positions: Sequence[int], numerator: Floats, denominator: Floats, with_sums: bool) -> pa.Table:
    cells, lines, width = len(positions), len(table.lines), len(table.columns)
    shape = (cells * lines, width)
    tops, bottoms = _sums(table, numerator), _sums(table, denominator)
    reductions = np.tile([column.reduction for column in table.columns], lines)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = tops / bottoms
        plain = reductions == "sum"
        values[:, plain] = tops[:, plain]
        if (here := reductions == "exp_ratio").any():
            values[:, here] = np.exp(values[:, here])
        if (here := reductions == "max").any():
            values[:, here] = _largest(table, numerator / denominator)[:, here]
        if (here := reductions == "mean").any():
            counts = _sums(table, np.ones_like(numerator))
            values[:, here] = (_sums(table, numerator / denominator) / counts)[:, here]
    values, tops, bottoms = (numbers.reshape(shape) for numbers in (values, tops, bottoms))
    again = pa.array(np.tile(np.arange(lines), cells))
    columns: dict[str, pa.Array] = {}
    for number, (name, reduction) in enumerate(table.columns):
        columns[name] = _nullable(values[:, number])
        if with_sums and reduction in ("ratio", "exp_ratio"):
            columns[f"{name}_numerator"] = _nullable(tops[:, number])
            columns[f"{name}_denominator"] = _nullable(bottoms[:, number])
    layers = np.array([-1 if line.layer is None else line.layer for line in table.lines], np.int32)
    return pa.table(
        {
            "position": pa.array(np.repeat(np.asarray(positions, np.int64), lines)),
            "subject": pa.array([line.subject for line in table.lines], pa.string()).take(again),
            "layer": pa.array(layers, pa.int32(), mask=layers < 0).take(again),
            "group": pa.array([line.group for line in table.lines], pa.string()).take(again),
            "convention": pa.array([line.convention for line in table.lines], pa.string()).take(again),
            **columns,
        }
    )


def _nullable(values: Floats) -> pa.Array:
    return pa.array(np.ascontiguousarray(values), pa.float64(), mask=np.isnan(values))

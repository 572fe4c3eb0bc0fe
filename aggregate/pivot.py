"""Long measurements of some cells -> one wide table per scope, whatever the order of the rows.

Integers (weights, bytes, flops, tokens) add up exactly in any order; rows with fractions are sorted by value first.
So the sums depend on which rows there are, never on how they lie or where a partition ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparsehpc.core import schema
from sparsehpc.core.errors import SparseHPCError

#: Scopes that become tables.
SCOPES = ("model", "group", "layer", "tensor", "window", "bin")

#: Scopes whose sums stay beside the value, because intervals are computed from them.
WITH_SUMS = ("window", "bin")

#: Columns of every wide table that are no metric.
INDEX = ("position", "subject", "layer", "group", "convention")

#: Integers below this add up exactly in float64.
_EXACT = 2.0**53

#: Conventions with a name; what has none is shown under each of them.
_NAMED = ("unique", "study")

_TEXT = ("subject", "group", "convention", "component", "metric")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Kind(NamedTuple):
    """How the rows of a metric combine, and their unit."""

    reduction: str
    unit: str


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows as arrays; text is coded into sorted names."""

    columns: dict[str, NDArray[Any]]
    names: dict[str, list[str]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def take(self, chosen: NDArray[Any], **changed: int) -> _Rows:
        """Rows by index or mask, some columns set to one value."""
        taken = {name: column[chosen] for name, column in self.columns.items()}
        for name, value in changed.items():
            taken[name] = np.full_like(taken[name], value)
        return _Rows(taken, self.names)

    def and_rows(self, other: _Rows) -> _Rows:
        """Both, one after the other."""
        return _Rows({name: np.concatenate([self[name], other[name]]) for name in self.columns}, self.names)


def kinds_of(table: pa.Table) -> dict[str, Kind]:
    """Reduction and unit of every metric; two for one metric is an error."""
    kinds: dict[str, Kind] = {}
    for row in table.group_by(["metric", "reduction", "unit"]).aggregate([]).to_pylist():
        kind = Kind(row["reduction"], row["unit"])
        if kind.reduction not in schema.REDUCTIONS:
            raise SparseHPCError(
                f"metric {row['metric']!r} has reduction {kind.reduction!r}; legal: {', '.join(schema.REDUCTIONS)}"
            )
        if kinds.setdefault(row["metric"], kind) != kind:
            raise SparseHPCError(f"metric {row['metric']!r} combines in two ways: {kinds[row['metric']]} and {kind}")
    return kinds


def pivot(table: pa.Table, kinds: Mapping[str, Kind]) -> dict[str, pa.Table]:
    """One wide table per scope.

    Parameters
    ----------
    table
        `schema.MEASUREMENTS` with ``position`` (int64, the cell's place in the plan) instead of ``cell_id``.
    kinds
        From `kinds_of`.

    Returns
    -------
    dict
        By scope: `INDEX`, then float64 columns: each metric by its name, each component of it as
        ``metric_component``; for windows and bins also ``metric_numerator`` and ``metric_denominator``.
        Window rows are also reduced to the model scope, for every metric a cell has no model row of.
    """
    scope, scopes = _code(table["scope"])
    if unknown := sorted(set(scopes) - set(schema.SCOPES)):
        raise SparseHPCError(f"unknown scope {unknown[0]!r}; legal: {', '.join(schema.SCOPES)}")
    rows = _sorted(_read(table), kinds)
    scope = scope[rows["row"]]
    by_scope = {name: rows.take(np.flatnonzero(scope == code)) for code, name in enumerate(scopes)}
    if "window" in by_scope:
        by_scope["model"] = _with_window_sums(by_scope.get("model"), by_scope["window"])
    return {
        name: _wide(_spread(by_scope[name]), kinds, with_sums=name in WITH_SUMS) for name in SCOPES if name in by_scope
    }


def _read(table: pa.Table) -> _Rows:
    columns: dict[str, NDArray[Any]] = {"row": np.arange(table.num_rows)}
    names: dict[str, list[str]] = {}
    for name in _TEXT:
        # Names that rows are relabelled to must have a code even where no row has them.
        extra = {"subject": ("model",), "convention": ("", "study", "unique"), "group": ("",)}.get(name, ())
        columns[name], names[name] = _code(table[name], extra)
    columns["position"] = table["position"].to_numpy()
    columns["layer"] = pc.fill_null(table["layer"], -1).to_numpy().astype(np.int64)
    columns["numerator"] = table["numerator"].to_numpy()
    columns["denominator"] = table["denominator"].to_numpy()
    return _Rows(columns, names)


def _code(column: pa.ChunkedArray, extra: tuple[str, ...] = ()) -> tuple[Ints, list[str]]:
    encoded = column.combine_chunks().dictionary_encode()
    found = encoded.dictionary.to_pylist()
    names = sorted({*found, *extra})
    index = {name: code for code, name in enumerate(names)}
    return np.array([index[name] for name in found], np.int64)[encoded.indices.to_numpy()], names


def _sorted(rows: _Rows, kinds: Mapping[str, Kind]) -> _Rows:
    """Put rows whose sums round behind the exact ones, in the order of their values."""
    numerator, denominator = rows["numerator"], rows["denominator"]
    means = np.array([kinds[name].reduction == "mean" for name in rows.names["metric"]], bool)
    rounds = means[rows["metric"]]
    for values in (numerator, denominator):
        with np.errstate(invalid="ignore"):
            rounds |= (values != np.floor(values)) | ~(np.abs(values) < _EXACT)
    inexact = np.flatnonzero(rounds)
    order = np.lexsort((denominator[inexact], numerator[inexact]))
    return rows.take(np.concatenate([np.flatnonzero(~rounds), inexact[order]]))


def _with_window_sums(model: _Rows | None, windows: _Rows) -> _Rows:
    whole = windows.take(np.arange(len(windows["position"])), subject=windows.names["subject"].index("model"), layer=-1)
    if model is None:
        return whole
    metrics = len(model.names["metric"])
    own = np.unique(model["position"] * metrics + model["metric"])
    return model.and_rows(whole.take(~np.isin(whole["position"] * metrics + whole["metric"], own)))


def _spread(rows: _Rows) -> _Rows:
    """Repeat what has no convention under each convention that the cell has for that subject."""
    code = {name: rows.names["convention"].index(name) for name in ("", *_NAMED)}
    place = rows["position"] * len(rows.names["subject"]) + rows["subject"]
    blank = rows["convention"] == code[""]
    if not blank.any() or blank.all():
        return rows
    spread = np.zeros_like(blank)
    parts = []
    for name in _NAMED:
        here = blank & np.isin(place, np.unique(place[rows["convention"] == code[name]]))
        parts.append(rows.take(here, convention=code[name]))
        spread |= here
    result = rows.take(~spread)
    for part in parts:
        result = result.and_rows(part)
    return result


def _wide(rows: _Rows, kinds: Mapping[str, Kind], *, with_sums: bool) -> pa.Table:
    names = rows.names
    subjects, conventions = len(names["subject"]), len(names["convention"])
    key = (rows["position"] * subjects + rows["subject"]) * conventions + rows["convention"]
    keys, first, line = np.unique(key, return_index=True, return_inverse=True)
    layer, group = np.full(len(keys), -1), np.full(len(keys), names["group"].index(""))
    for target, source, known in (
        (layer, rows["layer"], rows["layer"] >= 0),
        (group, rows["group"], rows["group"] != names["group"].index("")),
    ):
        # Every row of a subject names its layer and group, or none does: which one is read does not matter.
        target[line[known]] = source[known]
    table = {
        "position": pa.array(rows["position"][first], pa.int64()),
        "subject": _names(rows["subject"][first], names["subject"]),
        "layer": pa.array(layer, pa.int32(), mask=layer < 0),
        "group": _names(group, names["group"]),
        "convention": _names(rows["convention"][first], names["convention"]),
    }
    # Rows per metric and component, found once; a column is one slice of them.
    pair = rows["metric"] * len(names["component"]) + rows["component"]
    order = np.argsort(pair, kind="stable")
    cuts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    columns: dict[str, pa.Array] = {}
    for chosen in np.split(order, cuts[1:]) if len(cuts) else ():
        metric = names["metric"][rows["metric"][chosen[0]]]
        component = names["component"][rows["component"][chosen[0]]]
        if component:
            _put(columns, f"{metric}_{component}", _column(rows, chosen, line, len(keys), kinds[metric].reduction)[0])
    by_metric = np.argsort(rows["metric"], kind="stable")
    cuts = np.flatnonzero(np.diff(rows["metric"][by_metric], prepend=-1))
    for chosen in np.split(by_metric, cuts[1:]) if len(cuts) else ():
        metric = names["metric"][rows["metric"][chosen[0]]]
        value, numerator, denominator = _column(rows, chosen, line, len(keys), kinds[metric].reduction)
        _put(columns, metric, value)
        if with_sums and kinds[metric].reduction in ("ratio", "exp_ratio"):
            _put(columns, f"{metric}_numerator", numerator)
            _put(columns, f"{metric}_denominator", denominator)
    return pa.table({**table, **dict(sorted(columns.items()))})


def _put(columns: dict[str, pa.Array], name: str, values: pa.Array) -> None:
    if name in columns or name in INDEX:
        raise SparseHPCError(f"two figures want the column {name!r}: a metric and a component of another, or a key")
    columns[name] = values


def _names(codes: Ints, names: list[str]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(codes))


def _column(rows: _Rows, chosen: Ints, line: Ints, lines: int, reduction: str) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Value, sum of numerators and sum of denominators of one metric on every line; null where it has no row."""
    where, top, bottom = line[chosen], rows["numerator"][chosen], rows["denominator"][chosen]
    count = np.bincount(where, minlength=lines)
    numerator: Floats = np.bincount(where, top, minlength=lines).astype(np.float64)
    denominator: Floats = np.bincount(where, bottom, minlength=lines).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value: Floats
        if reduction == "sum":
            value = numerator
        elif reduction == "mean":
            value = np.bincount(where, top / bottom, minlength=lines) / np.maximum(count, 1)
        elif reduction == "max":
            value = np.full(lines, -np.inf)
            np.maximum.at(value, where, top / bottom)
        else:
            value = numerator / denominator
            if reduction == "exp_ratio":
                value = np.exp(value)
    absent = count == 0
    return (
        pa.array(value, pa.float64(), mask=absent | np.isnan(value)),
        pa.array(numerator, pa.float64(), mask=absent),
        pa.array(denominator, pa.float64(), mask=absent),
    )

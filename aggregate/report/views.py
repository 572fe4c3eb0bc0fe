"""What the interactive views of the page draw: the tables, as compact JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from aggregate.figures.data import Combination, ModelData, Record, missing, records
from aggregate.figures.heatmap import linear_weights
from aggregate.figures.style import COMPONENTS
from aggregate.floor import mark as floor_mark
from aggregate.latency import machines
from aggregate.private import scrub
from aggregate.report.bins import MOST_CELLS as MOST_BINNED
from aggregate.report.bins import bin_views
from aggregate.tipping import REACHED
from sparsehpc.core import schema

#: Heat maps that the page holds; the table of tensors holds all.
MOST_HEAT_MAPS = 120

#: Cells whose figures the page holds.
MOST_CELLS = 12_000

#: Significant digits: more than anyone reads off a plot.
_DIGITS = 6

#: Columns of the global table that views and the interactive table use.
_FIGURES = (
    "sparsity",
    "sparsity_prunable",
    "bytes_total",
    "bytes_ratio",
    "flops_dense",
    "flops_theoretical",
    "flops_executed",
    "top1_agreement",
    "top1_agreement_lo",
    "top1_agreement_hi",
    "kl",
    "kl_lo",
    "kl_hi",
    "perplexity",
    "perplexity_lo",
    "perplexity_hi",
    "perplexity_dense",
    "bits_per_byte",
    "dense_only_right",
    "variant_only_right",
    "break_even_sparsity",
    "bytes_dense_float32",
    "bytes_dense_published",
    "bytes_source_file",
    "bytes_dense_bf16",
    "bytes_dense_int8",
    "bytes_dense_q4",
    "speedup",
    "decode_s_per_token",
)
_PART = "bytes_total_"

#: Figures of a tensor that the heat map can show: column, heading.
_HEAT = (("sparsity", "zeros"), ("param_fraction", "share of parameters"), ("bytes_total", "bytes"))
_ERROR = "reconstruction_error"


class Views(NamedTuple):
    """JSON for a script element, safe inside HTML, and what of the tables it leaves out, in words."""

    text: str
    cut: list[str]


def views(models: list[ModelData], whole: pd.DataFrame, groups: pd.DataFrame) -> Views:
    """What the page's script draws.

    Parameters
    ----------
    models
        Tables of each model, convention ``unique``.
    whole, groups
        The tables ``global`` and ``groups``, both conventions.
    """
    looks = {name: look._asdict() for data in models for name, look in data.looks.items()}
    cut: list[str] = []

    def first(most: int, what: str, every: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        found = list(itertools.islice(every, most))
        if next(every, None) is not None:
            cut.append(f"{what} of the first {most:,}")
        return found

    content = {
        "models": [_model(data) for data in models],
        "looks": looks,
        "components": {name: title for name, (title, _) in COMPONENTS.items()},
        "groups": list(schema.GROUPS),
        "cells": _columns(first(MOST_CELLS, "figures, list and download", _cells(models, whole))),
        "tipping": [
            _tip(index, method, row)
            for index, data in enumerate(models)
            for method in data.methods
            # Below the first sparsity measured, a place would only follow the grid: it is said in words, not drawn.
            for row in records(method.rows(data.tipping[data.tipping["answer"] == REACHED]))
        ],
        "seeds": [one for index, data in enumerate(models) for one in _seeds(index, data)],
        "speed": [one for index, data in enumerate(models) for one in _speed(index, data)],
        "heat": first(MOST_HEAT_MAPS, "heat maps", _heat(models)),
        "bins": first(MOST_BINNED, "choices by margin and position", bin_views(models)),
        "twins": [_twins(data, whole, groups) for data in models],
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    # Nothing in a script element may look like the end of it, whatever a model is called.
    return Views(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"), cut)


def _model(data: ModelData) -> dict[str, Any]:
    return {
        "model": scrub(data.subject.model),
        "dtype": " · ".join(part for part in (data.subject.dtype, scrub(data.subject.extra)) if part),
        "trained": data.trained,
        "shown": data.shown_sparsity,
    }


def _cells(models: list[ModelData], whole: pd.DataFrame) -> Iterator[dict[str, Any]]:
    old = whole[whole["convention"] == "study"].set_index("cell_id")["bytes_total"]
    for index, data in enumerate(models):
        extra = {cell: method.extra for method in data.methods for cell in method.rows(data.pruned)["cell_id"]}
        fronts = _fronts(data)
        parts = [name for name in data.table.columns if name.startswith(_PART)]
        for row in records(data.table):
            yield {
                "m": index,
                "method": row["method"],
                "pattern": row["pattern"],
                "s": row["sparsity_target"],
                "variant": row["variant"],
                "seed": None if missing(row["calibration_seed"]) else int(row["calibration_seed"]),
                "extra": extra.get(row["cell_id"], ""),
                "mark": row["mark"] or floor_mark(row),
                "cell": row["cell_id"],
                "front": fronts.get(row["cell_id"], ""),
                "old": short(old.get(row["cell_id"])),
                **{name: short(row[name]) for name in parts if not missing(row[name]) and row[name]},
                **{name: short(row[name]) for name in _FIGURES if name in row and not missing(row[name])},
            }


def _fronts(data: ModelData) -> dict[str, str]:
    """By cell: the fronts it is on, as ``cost.loss`` separated by spaces."""
    found: dict[str, list[str]] = {}
    for row in records(data.pareto[data.pareto["on_front"].astype(bool)]):
        found.setdefault(row["cell_id"], []).append(f"bytes.{row['loss_metric']}")
    # The page shows one time a cell, as the table does: that of the first machine.
    for row in records(data.latency.drop_duplicates("behaviour_cell_id") if len(data.latency) else data.latency):
        names = [f"time.{loss}" for loss in ("perplexity", "top1_agreement") if row[f"on_front_{loss}"]]
        found.setdefault(row["behaviour_cell_id"], []).extend(names)
    return {cell: " ".join(names) for cell, names in found.items()}


def _seeds(index: int, data: ModelData) -> Iterator[dict[str, Any]]:
    """Intervals over calibration seeds, where the table has one."""
    if data.seeds.empty:
        return
    for method in data.methods:
        for row in records(method.rows(data.seeds[data.seeds["mean_lo"].notna()])):
            yield {
                "m": index,
                **{name: row[name] for name in ("method", "pattern", "variant", "metric")},
                "extra": method.extra,
                "s": row["sparsity_target"],
                "lo": short(row["mean_lo"]),
                "hi": short(row["mean_hi"]),
            }


#: Figures of a timed cell that the speed view draws: name in the page, column.
_SPEED = {
    "speedup": "speedup",
    "least": "speedup_least",
    "most": "speedup_most",
    "ceiling": "ceiling_speedup",
    "promise": "flop_promise_speedup",
    "floor": "speedup_floor",
}


def _speed(index: int, data: ModelData) -> Iterator[dict[str, Any]]:
    """Timed cells of every way of pruning and machine."""
    for machine, rows in machines(data.latency):
        for method in data.methods:
            for row in records(method.rows(rows).drop_duplicates(["sparsity_target", "variant"])):
                yield {
                    "m": index,
                    "machine": scrub(machine),
                    **{name: row[name] for name in ("method", "pattern", "variant")},
                    "extra": method.extra,
                    "s": row["sparsity_target"],
                    **{name: short(row[column]) for name, column in _SPEED.items() if not missing(row[column])},
                }


def _columns(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Cells column by column, text as codes: a fraction of the bytes that a name per value would take."""
    names = dict.fromkeys(name for cell in cells for name in cell)
    columns: dict[str, Any] = {}
    for name in names:
        values = [cell.get(name) for cell in cells]
        if all(isinstance(value, str) for value in values) and name != "cell":
            known = {value: code for code, value in enumerate(dict.fromkeys(values))}
            columns[name] = {"names": list(known), "codes": [known[value] for value in values]}
        else:
            columns[name] = values
    return {"rows": len(cells), "columns": columns}


def _tip(index: int, method: Combination, row: Record) -> dict[str, Any]:
    return {
        "m": index,
        "extra": method.extra,
        "method": row["method"],
        "pattern": row["pattern"],
        "variant": row["variant"],
        "metric": row["metric"],
        "tolerance": row["tolerance"],
        "s": short(row["sparsity_estimate"]),
        "within": row["sparsity_within"],
        "beyond": None if missing(row["sparsity_beyond"]) else row["sparsity_beyond"],
    }


def _heat(models: list[ModelData]) -> Iterator[dict[str, Any]]:
    """Layer x projection of the first variant of every method, pattern and sparsity."""
    for index, data in enumerate(models):
        for method in data.methods:
            rows = linear_weights(data.of_method(data.tensors, method))
            for s, part in rows.groupby("sparsity_target"):
                one = part[part["variant"] == part["variant"].iloc[0]]
                order = list(dict.fromkeys(one.sort_values(["group", "tensor"])["projection"]))
                total = one["params_total"].sum()
                one = one.assign(param_fraction=one["params_total"] / total)
                shown = [*_HEAT, *([(_ERROR, "reconstruction error")] if _ERROR in one else [])]
                yield {
                    "m": index,
                    "method": method.method,
                    "pattern": method.pattern,
                    "extra": method.extra,
                    "s": s,
                    "projections": order,
                    "layers": sorted({int(layer) for layer in one["layer"]}),
                    "values": {
                        title: [
                            [short(value) for value in line]
                            for line in one.pivot_table(index="layer", columns="projection", values=name)
                            .reindex(columns=order)
                            .to_numpy()
                        ]
                        for name, title in shown
                        if one[name].notna().any()
                    },
                }


def _twins(data: ModelData, whole: pd.DataFrame, groups: pd.DataFrame) -> dict[str, Any]:
    """The six figures of the old study in its own accounting and in ours: dense and each variant at one sparsity."""
    if data.first_method is None or data.shown_sparsity is None:
        return {}
    rows = data.of_method(data.pruned, data.first_method)
    rows = pd.concat([data.dense, rows[rows["sparsity_target"] == data.shown_sparsity]])
    names = dict(zip(rows["cell_id"], rows["variant"], strict=True))
    twins: dict[str, Any] = {
        "s": data.shown_sparsity,
        "method": data.first_method.method,
        "variants": list(names.values()),
    }
    for convention in ("study", "unique"):
        one = whole[(whole["convention"] == convention) & whole["cell_id"].isin(names)].set_index("cell_id")
        parts = groups[(groups["convention"] == convention) & groups["cell_id"].isin(names)]
        twins[convention] = {
            **{
                name: [short(one[name].get(cell)) for cell in names]
                for name in ("bytes_total", "sparsity", "top1_agreement", "flops_executed")
            },
            **{
                f"group_{name}": {
                    group: [short(part.set_index("cell_id")[name].get(cell)) for cell in names]
                    for group, part in parts.groupby("group")
                }
                for name in ("sparsity", "param_fraction", "flops_executed")
            },
        }
    return twins


def short(value: Any) -> float | int | None:
    """A number as JSON can hold it, with as many digits as a plot needs."""
    if missing(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    rounded = float(f"{float(value):.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded

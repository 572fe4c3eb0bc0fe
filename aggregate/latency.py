"""The ``latency`` table: how long decoding took, by cell and machine, beside what the cell keeps of the dense model.

Times differ from run to run, so they stand in a table of their own: every other table is the same, byte for byte,
however often a study is run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from aggregate.pareto import front
from aggregate.reduce import Reduced
from aggregate.scan import Coverage
from sparsehpc.core import schema
from sparsehpc.core.spec import DENSE, Cell

#: Figures of a timed cell, in the order of the table.
FIGURES = (
    "decode_s_per_token",
    "decode_p90_s_per_token",
    "decode_s_per_token_dense",
    "decode_p90_s_per_token_dense",
    "speedup",
    "speedup_least",
    "speedup_most",
    "prompt_s",
    "prompt_p90_s",
    "prompt_s_dense",
    "prompt_p90_s_dense",
    "prompt_speedup",
    "effective_gb_per_s",
    "byte_limit_s_per_token",
    "byte_limit_share",
    "byte_limit_speedup",
    "ceiling_speedup",
    "flop_promise_speedup",
    "streamed_bytes",
    "streamed_bytes_dense",
    "pruned_bytes",
    "pruned_bytes_dense",
    "resident_bytes",
    "logits_error",
)

#: What the same weights came to where behaviour was measured.
_BEHAVIOUR = ("bytes_total", "bytes_ratio", "perplexity", "perplexity_dense", "top1_agreement")

#: Losses that the time is weighed against, and whether more of it is worse.
_FRONTS = (("perplexity", 1.0), ("top1_agreement", -1.0))

#: Times are compared on one machine only.
MACHINE = ("cpu_model", "threads")

#: What other tables show of it beside a cell.
SHOWN = ("speedup", "decode_s_per_token")

_NOTES = ("isa", "decoder")
_ROW = ("trained", "lossless", "kernel", "cpu_model", "threads")
#: What timing a cell took, as in `costs`.
_COSTS = ("wall_s", "peak_rss_bytes")
_TIMED = ("prompt_tokens", "new_tokens", "repeats")
_SAME = ("model", "revision", "dtype", "device", "evaluation_corpus", "evaluation_windows", "evaluation_window_tokens")


def latency_table(timed: Coverage, reduced: Reduced, whole: pa.Table) -> pa.Table | None:
    """Rows of all timed cells that are done, in plan order; None where a study times nothing.

    Parameters
    ----------
    timed
        Coverage of the cells that are timed.
    reduced
        Their figures; positions are those of ``timed``.
    whole
        The ``global`` table, for what the same weights came to.
    """
    if not timed.plan.num_rows:
        return None
    wide = reduced.wide.get("model")
    figures = {} if wide is None else {line["position"]: line for line in wide.to_pylist()}
    behaviour = {line["cell_id"]: line for line in whole.to_pylist() if line["convention"] != "study"}
    specs = timed.plan["spec"].to_pylist()
    rows = []
    for position, keys in enumerate(timed.plan.drop_columns(["order", "kind", "spec"]).to_pylist()):
        row = timed.rows[position]
        if row is None or position not in figures:
            continue
        cell = Cell.from_json(specs[position])
        twin = dataclasses.replace(cell, latency=None).cell_id
        known, notes = behaviour.get(twin, {}), json.loads(row["notes"])
        rows.append(
            {
                **keys,
                **{name: row[name] for name in (*_ROW, *_COSTS)},
                **{name: str(notes.get(name, "")) for name in _NOTES},
                **{name: getattr(cell.latency, name) for name in _TIMED},
                **{name: figures[position].get(name) for name in FIGURES},
                **{name: known.get(name) for name in _BEHAVIOUR},
                "started_at": row["started_at"],
                "behaviour_cell_id": twin,
            }
        )
    _compare(rows)
    return pa.Table.from_pylist(rows, schema=_schema(reduced))


def beside(table: pd.DataFrame, latency: pd.DataFrame | None) -> pd.DataFrame:
    """Rows of another table with the time of each cell beside them, where there is one."""
    if latency is None or latency.empty:
        return table
    times = latency.set_index("behaviour_cell_id")[list(SHOWN)]
    return table.join(times[~times.index.duplicated()], on="cell_id")


def machines(latency: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name of every machine and its rows, in plan order."""
    if latency.empty:
        return
    for (cpu, threads), rows in latency.groupby(list(MACHINE), sort=False):
        yield f"{cpu}, {threads} thread{'s' * (threads != 1)}", rows


def _compare(rows: list[dict[str, Any]]) -> None:
    """What rows of one model and machine say together: their floor, and which no other beats in both time and loss."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return
    for _, same in frame.groupby([*_SAME, *MACHINE], dropna=False, sort=False):
        floor = _floor(same)
        time = same["decode_s_per_token"].to_numpy(float)
        losses = {loss: pd.to_numeric(same[loss], errors="coerce").to_numpy(float) for loss, _ in _FRONTS}
        on = {loss: front(time, sign * losses[loss]) for loss, sign in _FRONTS}
        for place, index in enumerate(same.index):
            marks = {f"on_front_{loss}": bool(on[loss][place]) for loss, _ in _FRONTS}
            rows[int(index)] |= {"speedup_floor": floor, **marks}


def _floor(rows: pd.DataFrame) -> float | None:
    """How far the ratio to dense strays from 1, either way, where both sides read the same bytes in the same kernel."""
    kernels = rows.loc[rows["variant"] == DENSE, "kernel"]
    alike = rows["kernel"].isin(kernels) & (rows["streamed_bytes"] == rows["streamed_bytes_dense"])
    same = rows.loc[alike, "speedup"].astype(float)
    return None if same.empty else float(np.maximum(same, 1 / same).max())


def _schema(reduced: Reduced) -> pa.Schema:
    about: Mapping[str, pa.Field] = {field.name: field for field in schema.CELL}
    keys = [name for name in schema.KEYS.names if name != "cell_id"]
    first = ["model", "dtype", "method", "pattern", "sparsity_target", "variant", "calibration_seed"]
    fields = [about[name].with_nullable(True) for name in first]
    fields += [about[name].with_nullable(True) for name in ("cpu_model", "threads")]
    fields += [pa.field(name, pa.string()) for name in _NOTES]
    fields += [pa.field(name, pa.int64()) for name in _TIMED]
    for name in FIGURES:
        kind = reduced.kinds.get(name)
        fields.append(pa.field(name, pa.float64(), metadata={"unit": kind.unit} if kind else None))
    fields += [pa.field(name, pa.float64()) for name in ("speedup_floor", *_BEHAVIOUR)]
    fields += [pa.field(f"on_front_{loss}", pa.bool_()) for loss, _ in _FRONTS]
    fields += [about[name].with_nullable(True) for name in ("trained", "lossless", "kernel")]
    fields += [about[name].with_nullable(True) for name in keys if name not in first]
    fields += [about[name].with_nullable(True) for name in _COSTS]
    fields += [about["started_at"], pa.field("behaviour_cell_id", pa.string()), about["cell_id"]]
    return pa.schema(fields)

"""Tables that answer questions: tipping points, calibration seeds, and what nothing else beats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from aggregate import statistics, tipping
from aggregate.intervals import LOG_RATIO, by_cell
from aggregate.pareto import front
from aggregate.statistics import Floats
from sparsehpc.core import schema

#: Everything that names a cell except where it stands on the curve.
_AXES = [name for name in schema.KEYS.names if name not in ("cell_id", "sparsity_target", "resource")]

#: Keys that a reader sees first.
_SHOWN = ["model", "dtype", "method", "pattern", "variant", "calibration_seed"]

#: Figures whose seeds are summarised.
_SEED_METRICS = ("top1_agreement", "kl", "nll", "bits_per_byte", "perplexity")

#: Costs of a cell that a smaller loss is weighed against; time has its own table (`aggregate.latency`).
_COSTS = ("bytes_total",)

_WHOLE = ("calibration_seed", "calibration_windows", "calibration_window_tokens")

_TIPPING = {
    "metric": pa.string(),
    "tolerance": pa.float64(),
    "basis": pa.string(),
    "answer": pa.string(),
    "sparsity_within": pa.float64(),
    "sparsity_beyond": pa.float64(),
    "sparsity_estimate": pa.float64(),
    "points": pa.int64(),
    "left_out": pa.int64(),
    "break_answer": pa.string(),
    "break_sparsity": pa.float64(),
    "break_lo": pa.float64(),
    "break_hi": pa.float64(),
    "break_share_two_pieces": pa.float64(),
}
_SEEDS = {
    "sparsity_target": pa.float64(),
    "metric": pa.string(),
    "seeds": pa.int64(),
    "mean": pa.float64(),
    "smallest": pa.float64(),
    "largest": pa.float64(),
    "mean_lo": pa.float64(),
    "mean_hi": pa.float64(),
    "note": pa.string(),
}
_PARETO = {
    "sparsity_target": pa.float64(),
    "cost_metric": pa.string(),
    "cost": pa.float64(),
    "loss_metric": pa.string(),
    "value": pa.float64(),
    "reference": pa.bool_(),
    "on_front": pa.bool_(),
}


class Sums(NamedTuple):
    """Sums of a figure per window: difference of the cell's to the dense model's, the dense model's, and tokens."""

    difference: Floats
    dense: Floats
    tokens: Floats


def findings(table: pa.Table, windows: pa.Table | None) -> dict[str, pa.Table]:
    """The tables ``tipping``, ``seeds`` and ``pareto``.

    Parameters
    ----------
    table
        The ``global`` table.
    windows
        Window rows as `aggregate.pivot` makes them, positions in plan order; None where there are none.
    """
    frame = table.to_pandas()
    frame = frame[frame["convention"] != "study"].drop_duplicates("cell_id").reset_index(drop=True)
    sums = {} if windows is None else _sums(windows, "nll")
    return {
        "tipping": _table(_tipping(frame, sums), table, _TIPPING),
        "seeds": _table(_seeds(frame, windows), table, _SEEDS),
        "pareto": _table(_pareto(frame), table, {**_PARETO, "cell_id": pa.string()}),
    }


def _table(rows: Iterator[dict[str, Any]], source: pa.Table, columns: dict[str, pa.DataType]) -> pa.Table:
    rest = [name for name in _AXES if name not in _SHOWN]
    keys = {name: source.schema.field(name).type for name in [*_SHOWN, *rest]}
    first = {name: keys[name] for name in _SHOWN}
    fields = {**first, **columns, "trained": pa.bool_(), **{name: keys[name] for name in rest}}
    found = [{name: _plain(row.get(name)) for name in fields} for row in rows]
    return pa.Table.from_pylist(found, schema=pa.schema(list(fields.items())))


def _plain(value: Any) -> Any:
    """Missing is null in every type."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Rows that agree in ``keys``, in the order of the plan."""
    if frame.empty:
        return
    values: Any
    for values, rows in frame.groupby(keys, dropna=False, sort=False):
        yield {key: _integer(key, value) for key, value in zip(keys, values, strict=True)}, rows


def _integer(key: str, value: Any) -> Any:
    """Whole numbers that pandas holds as floats because some cells have none."""
    return int(value) if key in _WHOLE and pd.notna(value) else value


def curves(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Keys and rows of every curve over sparsity, ascending, in the order of the plan.

    Parameters
    ----------
    frame
        The ``global`` table, one row a cell.
    """
    pruned = frame[(frame["method"] != "none") & (frame["sparsity_target"] > 0)]
    for keys, rows in _groups(pruned, _AXES):
        yield keys, rows.sort_values("sparsity_target", kind="stable").drop_duplicates("sparsity_target")


def _tipping(frame: pd.DataFrame, sums: dict[str, Sums]) -> Iterator[dict[str, Any]]:
    for keys, rows in curves(frame):
        s = rows["sparsity_target"].to_numpy(float)
        common = {**keys, "trained": bool(rows["trained"].all()), "points": len(rows)}
        for metric, tolerance in (
            ("perplexity", tipping.PERPLEXITY_TOLERANCE),
            ("top1_agreement", tipping.AGREEMENT_TOLERANCE),
        ):
            loss, limit = loss_of(rows, metric, tolerance)
            found = tipping.crossing(s, loss, limit)
            row = {
                **common,
                "metric": metric,
                "tolerance": tolerance,
                "basis": _basis(rows, metric),
                "answer": found.answer,
                "sparsity_within": found.within,
                "sparsity_beyond": found.beyond,
                # Below the first sparsity measured a place would only follow the grid.
                "sparsity_estimate": None if found.answer == tipping.BELOW_FIRST else found.estimate,
            }
            yield row | (_break(rows, sums) if metric == "perplexity" else {})


def _basis(rows: pd.DataFrame, metric: str) -> str:
    """What `loss_of` compares with the tolerance: bounds, points, or points where there is no bound."""
    name, side = (LOG_RATIO, "hi") if metric == "perplexity" else (metric, "lo")
    if name not in rows or not rows[name].notna().any():
        return ""
    measured = rows[rows[name].notna()]
    bound = f"{name}_{side}"
    without = len(measured) if bound not in measured else int(measured[bound].isna().sum())
    if without == len(measured):
        few = (measured["interval_units"] < statistics.FEWEST_UNITS).all()
        return f"point estimate, {statistics.TOO_FEW if few else 'no spread for an interval'}"
    points = f", and point estimates of {without} of {len(measured)} cells, which have none" if without else ""
    return f"bound of the 95 % interval{points}"


def loss_of(rows: pd.DataFrame, metric: str, tolerance: float) -> tuple[Floats, float]:
    """Loss on the bad side of the interval and the limit it must keep."""
    if metric == "perplexity":
        if LOG_RATIO not in rows:
            return np.full(len(rows), np.nan), math.log1p(tolerance)
        bad = rows[f"{LOG_RATIO}_hi"].fillna(rows[LOG_RATIO])
        return bad.to_numpy(float), math.log1p(tolerance)
    bad = rows[f"{metric}_lo"] if f"{metric}_lo" in rows else rows[metric]
    return 1 - bad.fillna(rows[metric]).to_numpy(float), 1 - tolerance


def _break(rows: pd.DataFrame, sums: dict[str, Sums]) -> dict[str, Any]:
    worse = rows["mark"].fillna("").str.contains("worse than guessing")
    kept = [cell for cell in rows.loc[~worse, "cell_id"] if cell in sums]
    s = np.array([0.0, *rows.loc[rows["cell_id"].isin(kept), "sparsity_target"]])
    # Runs of before the size of the vocabulary was recorded have no cap.
    sizes = rows["vocabulary_tokens"].fillna(np.inf) if "vocabulary_tokens" in rows else np.full(len(rows), np.inf)
    guess = dict(zip(rows["cell_id"], np.log(np.asarray(sizes, float)), strict=True))
    values, drawn = [0.0], [np.zeros(statistics.DRAWS)]
    for cell in kept:
        difference, dense, tokens = sums[cell]
        # A draw may lie above what guessing reaches where the cell as a whole does not: it is capped there.
        most = guess[cell] - dense.sum() / tokens.sum()
        most_drawn = guess[cell] - statistics.drawn_ratios(dense[None], tokens[None])[:, 0]
        values.append(float(np.minimum(difference.sum() / tokens.sum(), most)))
        drawn.append(np.minimum(statistics.drawn_ratios(difference[None], tokens[None])[:, 0], most_drawn))
    found = tipping.break_point(s, np.array(values), np.stack(drawn, axis=1))
    enough = bool(kept) and len(sums[kept[0]].tokens) >= statistics.FEWEST_UNITS
    return {
        "left_out": int(worse.sum()),
        "break_answer": found.answer,
        "break_sparsity": found.place,
        "break_lo": found.lo if enough else None,
        "break_hi": found.hi if enough else None,
        "break_share_two_pieces": found.share_two if enough else None,
    }


def _sums(windows: pa.Table, metric: str) -> dict[str, Sums]:
    """Sums of a figure by cell id."""
    if f"{metric}_numerator" not in windows.column_names or f"{metric}_dense_numerator" not in windows.column_names:
        return {}
    ids = dict(zip(windows["position"].to_pylist(), windows["cell_id"].to_pylist(), strict=True))
    dense: dict[int, Floats] = {}
    for found in by_cell(windows, f"{metric}_dense"):
        dense |= dict(zip(found.position.tolist(), found.numerator, strict=True))
    sums = {}
    for found in by_cell(windows, metric):
        for position, top, bottom in zip(found.position.tolist(), found.numerator, found.denominator, strict=True):
            sums[ids[position]] = Sums(top - dense[position], dense[position], bottom)
    return sums


def _seeds(frame: pd.DataFrame, windows: pa.Table | None) -> Iterator[dict[str, Any]]:
    seeded = frame[frame["calibration_seed"].notna()]
    keys = [name for name in [*_AXES, "sparsity_target"] if name != "calibration_seed"]
    by_metric = {} if windows is None else {metric: _paired(windows, metric) for metric in _SEED_METRICS}
    for named, rows in _groups(seeded, keys):
        if len(rows) < 2:
            continue
        for metric in _SEED_METRICS:
            if metric not in rows or rows[metric].isna().any():
                continue
            shown = rows[metric].to_numpy(float)
            # Nats are averaged and perplexities follow: their mean is the geometric one.
            values = np.log(shown) if metric == "perplexity" else shown
            row = {
                **named,
                "trained": bool(rows["trained"].all()),
                "metric": metric,
                "seeds": len(rows),
                "mean": values.mean(),
                "smallest": shown.min(),
                "largest": shown.max(),
            }
            sums = [by_metric.get(metric, {}).get(cell) for cell in rows["cell_id"]]
            if len(rows) < statistics.FEWEST_SEEDS:
                row["note"] = f"{len(rows)} seeds: smallest and largest, {statistics.TOO_FEW}"
            elif any(found is None or len(found[0]) < statistics.FEWEST_UNITS for found in sums):
                row["note"] = f"too few windows: smallest and largest, {statistics.TOO_FEW}"
            else:
                errors = [statistics.standard_error(f[0][None], f[1][None])[1][0] for f in sums if f is not None]
                row["mean_lo"], row["mean_hi"] = statistics.seeds_interval(values, np.array(errors))
                row["note"] = f"windows and {len(rows)} seeds"
            if metric == "perplexity":
                row |= {name: math.exp(row[name]) for name in ("mean", "mean_lo", "mean_hi") if name in row}
            yield row


def _paired(windows: pa.Table, metric: str) -> dict[str, tuple[Floats, Floats]]:
    """Sums by cell id: of the difference to dense where dense has the figure too, else of the figure itself."""
    if found := _sums(windows, metric):
        return {cell: (sums.difference, sums.tokens) for cell, sums in found.items()}
    if f"{metric}_numerator" not in windows.column_names:
        return {}
    ids = dict(zip(windows["position"].to_pylist(), windows["cell_id"].to_pylist(), strict=True))
    return {
        ids[position]: (top, bottom)
        for found in by_cell(windows, metric)
        for position, top, bottom in zip(found.position.tolist(), found.numerator, found.denominator, strict=True)
    }


def _pareto(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    same = [
        "model",
        "revision",
        "dtype",
        "device",
        "evaluation_corpus",
        "evaluation_windows",
        "evaluation_window_tokens",
    ]
    for _, rows in _groups(frame, same):
        for cost in _COSTS:
            for loss, sign in (("perplexity", 1.0), ("top1_agreement", -1.0)):
                if cost not in rows or loss not in rows:
                    continue
                measured = rows[rows[cost].notna() & rows[loss].notna()]
                on_front = front(measured[cost].to_numpy(float), sign * measured[loss].to_numpy(float))
                for row, on in zip(measured.to_dict("records"), on_front, strict=True):
                    yield {
                        **{str(key): _integer(str(key), value) for key, value in row.items()},
                        "cost_metric": cost,
                        "cost": float(row[cost]),
                        "loss_metric": loss,
                        "value": float(row[loss]),
                        "reference": row["method"] == "none",
                        "on_front": bool(on),
                    }

"""How fast decoding is: the sentences of a model, and the table of every timed cell."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from aggregate.figures.data import ModelData, Record, missing, records
from aggregate.figures.style import MIB, number, percent
from aggregate.floor import NO_MEASURABLE_DIFFERENCE
from aggregate.latency import machines
from aggregate.private import scrub
from aggregate.report.bins import UNTRAINED
from aggregate.report.phrases import dense_twin, of_own_dtype

SPEED_HEADINGS = (
    "model",
    "method",
    "sparsity asked",
    "variant",
    "ms per token",
    "p90",
    "dense, ms",
    "x as fast",
    "slowest and fastest round",
    "ceiling, x",
    "prompt, ms",
    "GB/s",
    "share of byte limit",
    "resident (MiB)",
    "machine",
    "kernel",
)

#: What zeros gain beside values that are narrower anyway.
_BETWEEN, _NOTHING = "only what lies between is the zeros'", "the zeros gained nothing"

#: Lines of the table, and formats that the sentence names.
_MOST, _MOST_FORMATS = 300, 6


def headlines(data: ModelData) -> Iterator[str]:
    """How fast the model is at the shown sparsity in the fastest format of its dtype, on every machine."""
    for machine, rows in machines(data.latency):
        own = _pruned(data, rows)
        if own.empty:
            continue
        near = min(own["sparsity_target"].unique(), key=lambda s: (abs(s - (data.shown_sparsity or 0.3)), s))
        here = own[own["sparsity_target"] == near].sort_values("speedup", ascending=False, kind="stable")
        best = records(of_own_dtype(here))[0]
        text = (
            f"At {percent(near)}, stored as {best['variant']}, it decodes {number(best['speedup'], 3)} x as fast as "
            f"the same model on our dense kernels ({_ms(best, 'decode_s_per_token')} against "
            f"{_ms(best, 'decode_s_per_token_dense')} ms a token, rounds from {number(best['speedup_least'], 3)} to "
            f"{number(best['speedup_most'], 3)} x); all bytes of a token, the dense head included, would allow "
            f"{number(best['ceiling_speedup'], 3)} x"
        )
        if not missing(best["byte_limit_share"]):
            share = percent(round(best["byte_limit_share"], 3))
            text += f", and a plain read of as many bytes takes {share} of its time"
        if not missing(best["speedup_floor"]) and best["speedup"] <= best["speedup_floor"]:
            text += f". {NO_MEASURABLE_DIFFERENCE.capitalize()}: {_same_work(best)}"
        yield f"{text} ({scrub(machine)}, prompt of {best['prompt_tokens']} tokens, {best['new_tokens']} more)."
        yield from _with_narrower_values(rows, here)


def _with_narrower_values(rows: pd.DataFrame, here: pd.DataFrame) -> Iterator[str]:
    """Formats of narrower values beside the dense reference that shares these, where both were timed."""
    dense = {row["variant"]: row for row in records(rows[rows["method"] == "none"])}
    for row in records(here):
        twin = dense.get(dense_twin(row["variant"]) or "")
        if twin is not None:
            gained = row["speedup"] > twin["speedup"]
            yield (
                f"At {percent(row['sparsity_target'])}, stored as {row['variant']}, it decodes "
                f"{number(row['speedup'], 3)} x as fast as dense {row['dtype']}; {twin['variant']}, not pruned, "
                f"{number(twin['speedup'], 3)} x: {_BETWEEN if gained else _NOTHING}."
            )


def break_evens(data: ModelData) -> Iterator[str]:
    """From which sparsity on the model is smaller, and faster, in each format: one sentence a machine."""
    for machine, rows in machines(data.latency):
        own = _pruned(data, rows)
        if own.empty:
            continue
        steps = ", ".join(percent(s) for s in sorted(own["sparsity_target"].unique()))
        known = rows[rows["speedup_floor"].notna()]
        floor = "" if known.empty else f"; {_same_work(records(known)[0])}"
        parts = "; ".join(smaller_and_faster(own)[:_MOST_FORMATS])
        yield f"Than dense, on this CPU ({scrub(machine)}; measured at {steps}{floor}): {parts}."


def smaller_and_faster(rows: pd.DataFrame) -> list[str]:
    """For each format the least sparsity from which on it was smaller than dense, and faster in every round.

    ``rows``: one way of pruning of the table ``latency``, on one machine.
    """
    parts = []
    for variant in dict.fromkeys(rows["variant"]):
        one = rows[rows["variant"] == variant].drop_duplicates("sparsity_target").sort_values("sparsity_target")
        smaller = _from(one, one["pruned_bytes"] < one["pruned_bytes_dense"])
        faster = _from(one, (one["speedup_least"] > 1) & ~(one["speedup"] <= one["speedup_floor"]))
        parts.append(f"as {variant} smaller {smaller}, faster {faster}")
    return parts


def speed_rows(latency: pd.DataFrame) -> list[list[str]]:
    """Lines of the table, in plan order."""
    return [_line(row) for row in records(latency.head(_MOST))]


def _pruned(data: ModelData, rows: pd.DataFrame) -> pd.DataFrame:
    if data.first_method is None:
        return rows.head(0)
    return data.first_method.rows(rows)


def _same_work(row: Record) -> str:
    floor = number(row["speedup_floor"], 3)
    return f"cells that do the same work as dense stray from it by up to {floor} x"


def _from(rows: pd.DataFrame, holds: pd.Series) -> str:
    """The least sparsity from which on something holds at every one that was measured."""
    within = None
    for s, true in zip(reversed(rows["sparsity_target"].tolist()), reversed(holds.tolist()), strict=True):
        if not true:
            break
        within = s
    return "at none" if within is None else f"from {percent(within)}"


def _line(row: Record) -> list[str]:
    method = "" if row["method"] == "none" else f"{row['method']} {row['pattern']}"
    return [
        scrub(str(row["model"])) + ("" if row["trained"] else UNTRAINED),
        method,
        "" if row["method"] == "none" else percent(row["sparsity_target"]),
        str(row["variant"]),
        _ms(row, "decode_s_per_token"),
        _ms(row, "decode_p90_s_per_token"),
        _ms(row, "decode_s_per_token_dense"),
        _number(row, "speedup"),
        f"{_number(row, 'speedup_least')} to {_number(row, 'speedup_most')}",
        _number(row, "ceiling_speedup"),
        _ms(row, "prompt_s"),
        _number(row, "effective_gb_per_s"),
        "" if missing(row["byte_limit_share"]) else percent(round(row["byte_limit_share"], 3)),
        f"{row['resident_bytes'] / MIB:,.0f}",
        scrub(f"{row['cpu_model']}, {row['threads']} threads, {row['isa']}, {row['decoder']} decoder"),
        str(row["kernel"]),
    ]


def _ms(row: Record, name: str) -> str:
    return "" if missing(row[name]) else number(1e3 * row[name], 3)


def _number(row: Record, name: str) -> str:
    return "" if missing(row[name]) else number(row[name], 3)

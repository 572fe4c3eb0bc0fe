"""Tables of results that are not of behaviour: what ran, sizes, shares, and answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from aggregate.atlas.cells import NOTHING, as_table
from aggregate.atlas.figures import old_and_stored
from aggregate.atlas.select import of, table_of
from aggregate.describe import provenance_of
from aggregate.export import markdown
from aggregate.figures.data import Record, axis_words, missing, records
from aggregate.figures.style import MIB, number, percent
from aggregate.tables import read_table
from aggregate.tipping import AGREEMENT_TOLERANCE, PERPLEXITY_TOLERANCE, REACHED
from sparsehpc.core import schema
from sparsehpc.core.layout import RunFolder

Runs = Mapping[str, RunFolder]

_METRICS = {
    "top1_agreement": "top-1 agreement, %",
    "kl": "KL, nats",
    "nll": "nats per token",
    "bits_per_byte": "bits per byte",
}


def conditions(runs: Runs) -> str:
    """What ran, on what, and how much of it is done."""
    rows = []
    for name, run in runs.items():
        table, coverage = table_of(runs, name), read_table(run, "coverage").to_pandas()
        found = provenance_of(run)
        first = table.iloc[0]
        text = f"{markdown(str(first['evaluation_corpus']))}, {first['evaluation_windows']} windows of at most "
        text += f"{first['evaluation_window_tokens']} tokens"
        learned = table[table["calibration_corpus"].notna()]
        if len(learned):
            one = learned.iloc[0]
            text += f"; calibrated on {one['calibration_windows']:.0f} x {one['calibration_window_tokens']:.0f}"
        threads = ", ".join(str(count) for count in sorted(set(table["threads"])))
        machine = ", ".join(sorted(set(table["cpu_model"])))
        versions = found.get("versions", {})
        rows.append(
            (
                f"`{name}`",
                f"{(coverage['state'] == 'done').sum()} of {len(coverage)}",
                text,
                f"{markdown(machine)}, threads: {threads}",
                f"`{_commit(str(found.get('commit', '')))}`, torch {versions.get('torch', '?')}",
            )
        )
    return as_table(("study", "cells done", "text", "machine", "code"), rows)


def _commit(name: str) -> str:
    """The first ten digits, and the mark of files that were changed and not committed."""
    return name[:10] + ("+" if name.endswith("+") else "")


def sizes(storage: pd.DataFrame) -> str:
    """MiB of the whole model by format and sparsity, dense references first."""
    if storage.empty:
        return NOTHING
    rows = storage[(storage["method"] == "magnitude") & (storage["pattern"] == "unstructured")]
    sparsities = sorted(set(rows["sparsity_target"]))
    lines = []
    first = records(storage)[0]
    for label, column in (
        ("dense, float32", "bytes_dense_float32"),
        ("dense, as published", "bytes_dense_published"),
        ("the published file", "bytes_source_file"),
    ):
        if not missing(first.get(column)):
            lines.append([label, *[number(first[column] / MIB, 4)] * len(sparsities)])
    for variant in dict.fromkeys(rows["variant"]):
        found = rows[rows["variant"] == variant].set_index("sparsity_target")
        lines.append(
            [
                f"`{variant}`, float32",
                *(
                    f"{number(found.loc[s, 'bytes_total'] / MIB, 4)} ({number(found.loc[s, 'bytes_ratio'], 3)})"
                    for s in sparsities
                ),
            ]
        )
    return as_table(["MiB (over dense float32)", *(percent(s) for s in sparsities)], lines)


def sizes_patterned(storage: pd.DataFrame) -> str:
    """MiB of patterns in their own formats."""
    if storage.empty:
        return NOTHING
    rows = storage[storage["variant"].isin(["nm", "bsr"])]
    return as_table(
        ("pattern", "format", "method", "MiB", "over dense float32"),
        (
            (
                row["pattern"],
                f"`{row['variant']}`",
                row["method"],
                number(row["bytes_total"] / MIB, 4),
                number(row["bytes_ratio"], 3),
            )
            for row in records(rows)
        ),
    )


def old_sizes(shape: pd.DataFrame) -> str:
    """What the old count said of sizes beside what is stored."""
    if shape.empty:
        return NOTHING
    return as_table(
        ("OPT-125M's shape, float32, 30 %", "MiB"),
        ((label, number(mib, 5)) for label, mib, _ in old_and_stored(shape)),
    )


def shares(runs: Runs) -> str:
    """Shares of the parameters in both counts."""
    if "reference-untrained" not in runs:
        return NOTHING
    groups = read_table(runs["reference-untrained"], "groups").to_pandas()
    dense = groups[(groups["variant"] == "dense") & groups["model"].str.contains("opt-125m")]
    rows = []
    for group in dict.fromkeys(dense["group"]):
        found = [of(dense, group=group, convention=convention)["param_fraction"] for convention in ("study", "unique")]
        rows.append((markdown(group), *(f"{100 * values.iloc[0]:.1f} %" if len(values) else "" for values in found)))
    return as_table(("group", "old count", "each tensor once"), rows)


def seeds(runs: Runs, name: str, metrics: Collection[str] = ()) -> str:
    """Spread over calibration seeds, of some metrics or all; nothing where the study has not run."""
    if name not in runs:
        return NOTHING
    found = read_table(runs[name], "seeds").to_pandas()
    rows = []
    for row in records(found[found["metric"].isin(metrics)] if metrics else found):
        scale, digits = (100.0, 3) if row["metric"] == "top1_agreement" else (1.0, 4)
        values = [scale * row[name] for name in ("mean", "smallest", "largest")]
        options = "" if row["options"] == "{}" else f", {axis_words('options', row['options'])}"
        rows.append(
            (
                f"{row['method']}{markdown(options)}",
                percent(row["sparsity_target"]),
                markdown(_METRICS.get(str(row["metric"]), str(row["metric"]))),
                str(row["seeds"]),
                *(number(value, digits) for value in values),
                number(values[2] - values[1], 2),
            )
        )
    return as_table(("method", "sparsity", "figure", "seeds", "mean", "smallest", "largest", "spread"), rows)


def tipping_points(runs: Runs, name: str) -> str:
    """How far each method can go: brackets of both tolerances and the break of log-perplexity, furthest last."""
    if name not in runs:
        return NOTHING
    found = read_table(runs[name], "tipping").to_pandas()
    agreement = {_way(row): row for row in records(found[found["metric"] == "top1_agreement"])}
    ranked = found[found["metric"] == "perplexity"].sort_values("sparsity_estimate", na_position="first", kind="stable")
    rows = []
    for row in records(ranked):
        share = row["break_share_two_pieces"]
        rows.append(
            (
                row["method"],
                _bracket(row),
                _bracket(agreement[_way(row)]),
                "" if missing(row["break_sparsity"]) else _break(row),
                "" if missing(share) else f"{number(100 * share, 3)} %",
                str(row["points"]),
            )
        )
    limits = [f"{100 * value:.0f} %" for value in (PERPLEXITY_TOLERANCE, AGREEMENT_TOLERANCE)]
    heads = (
        "method",
        f"perplexity +{limits[0]}",
        f"top-1 agreement {limits[1]}",
        "break",
        "draws with a break",
        "cells",
    )
    return as_table(heads, rows)


def repeated(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """How far cells of two runs that measured the same thing lie apart, in words; empty where there are none."""
    if first.empty or second.empty:
        return ""
    keys = [*(key for key in schema.KEYS.names if key not in ("cell_id", "resource", "options")), "evaluation_digest"]
    both = first.merge(second, on=keys, suffixes=("", "_again"))
    both = both[(both["method"] != "none") & (both["options"] == both["options_again"])]
    if both.empty:
        return ""
    apart = (both["perplexity"] / both["perplexity_again"] - 1).abs().max()
    how = "are equal to the last digit" if apart == 0 else f"differ by at most {number(100 * apart, 2)} %"
    return f"{len(both)} cells are in both studies, computed at other times by other code: their perplexities {how}."


def _way(row: Record) -> tuple[Any, ...]:
    return tuple(row[axis] for axis in ("model", "method", "pattern", "variant", "options"))


def _bracket(row: Record) -> str:
    """Between which measured sparsities a tolerance is left."""
    if row["answer"] != REACHED:
        return str(row["answer"])
    return f"{number(100 * row['sparsity_within'], 3)} to {number(100 * row['sparsity_beyond'], 3)} %"


def _break(row: Record) -> str:
    low, high = row["break_lo"], row["break_hi"]
    span = "" if missing(low) or missing(high) else f" [{number(100 * low, 3)}, {number(100 * high, 3)}]"
    return f"{number(100 * row['break_sparsity'], 3)}{span} %"

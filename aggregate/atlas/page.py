"""Pages of results: a template's prose around tables and figures computed from the copied tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from aggregate.atlas.figures import old_and_stored
from aggregate.atlas.select import SHARED, of, pruned_unstructured, table_of
from aggregate.claims import judge, load_tables, read_claims
from aggregate.claims.text import as_markdown, as_table, count
from aggregate.describe import provenance_of
from aggregate.export import markdown
from aggregate.figures.data import Record, axis_words, missing, records
from aggregate.figures.style import MIB, number, percent
from aggregate.tables import read_table
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder

Runs = Mapping[str, RunFolder]

_TEMPLATE = "index.md.jinja"
_MADE = "<!-- made by `make results` from the tables in data/; edit {source} -->\n"
_CLAIMS = """# Claims of the old study

What the study that this project began as said, in our own words, and what the tables of today's runs say to it. A claim
is *true* where every figure obeys its rule with its whole 95 % interval, *false* where none does, *depends* in between,
and *not measured* where there is no figure. `sparsehpc claims RUN...` judges the same file,
[`claims.toml`](claims.toml), by any runs.

"""

#: Columns of a table of behaviour: heading, metric, factor, digits, dense column.
_BEHAVIOUR = (
    ("top-1 agreement, %", "top1_agreement", 100.0, 3, None),
    ("KL, nats", "kl", 1.0, 3, None),
    ("perplexity", "perplexity", 1.0, 3, "perplexity_dense"),
    ("bits per byte", "bits_per_byte", 1.0, 4, "bits_per_byte_dense"),
)


def pages(folder: Path, runs: Runs, figures: Collection[str] = ()) -> dict[str, str]:
    """Text of every page by file name; ``figures`` are the names of those that were drawn."""
    tables = load_tables(list(runs.values()))
    claims, expected = (judge(read_claims(folder / name), tables) for name in ("claims.toml", "expectations.toml"))
    methods = table_of(runs, "methods")
    words = {
        "claims": as_table(claims, linked=True),
        "claims_count": count(claims),
        "expectations": as_table(expected),
        "verdicts": {ruling.claim.id: ruling.verdict for ruling in [*claims, *expected]},
        "conditions": conditions(runs),
        "by_sparsity": by_sparsity(methods),
        "patterns": behaviour(_half(methods), ["method", "pattern"], dense=False, order=["unstructured", "4:8", "2:4"]),
        "extras": extras(methods),
        "targets": targets(methods),
        "structured": structured(pd.concat([methods, _heads(table_of(runs, "heads"))], ignore_index=True)),
        "blocks": behaviour(_blocks(table_of(runs, "storage")), ["method", "pattern"], dense=True),
        "sizes": sizes(table_of(runs, "storage")),
        "sizes_patterned": sizes_patterned(table_of(runs, "storage")),
        "old_sizes": old_sizes(table_of(runs, "reference-untrained", both=True)),
        "shares": shares(runs),
        "scopes": scopes(table_of(runs, "scores")),
        "score_seeds": seeds(runs, "scores", ("top1_agreement", "kl", "perplexity")),
        "seeds": seeds(runs, "calibration-seeds"),
        "cell": finder(runs),
        "benchmark": benchmark_finder(folder / "benchmarks"),
        "number": number,
        "figures": set(figures),
    }
    try:
        found = Environment(  # noqa: S701 - Markdown; names from tables are escaped where they are written
            loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
        ).get_template(_TEMPLATE)
        index = found.render(words)
    except TemplateError as error:
        raise UserError(f"{folder / _TEMPLATE} cannot be rendered: {error}") from error
    return {
        "index.md": _MADE.format(source=_TEMPLATE) + index,
        "claims.md": _MADE.format(source="claims.toml") + _CLAIMS + as_markdown(claims),
    }


def benchmark_finder(folder: Path) -> Callable[..., Any]:
    """Look a row of a committed benchmark up in a template: ``benchmark(file, sparsity=0.3, baseline="own dense")``."""

    def find(name: str, **where: Any) -> Any:
        path = folder / f"{name}.json"
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read: {error}", f"sparsehpc bench SUITE --json {path}") from error
        found = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
        if len(found) != 1:
            raise UserError(f"{path} has {len(found)} rows with {where} instead of one")
        return found[0]

    return find


# ---- tables ---------------------------------------------------------------------------------------------------------


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
                f"`{str(found.get('commit', ''))[:10]}`, torch {versions.get('torch', '?')}",
            )
        )
    return _table(("study", "cells done", "text", "machine", "code"), rows)


def behaviour(
    table: pd.DataFrame, keys: Sequence[str], *, dense: bool = True, order: Sequence[str] = (), more: Any = ()
) -> str:
    """A line a cell: its keys and its behaviour with intervals; the dense model first."""
    if table.empty:
        return _NOTHING
    if order:
        table = table.sort_values("pattern", key=lambda c: c.map({p: n for n, p in enumerate(order)}), kind="stable")
    named: Sequence[tuple[str, Callable[[Record], str]]] = more
    rows = []
    if dense:
        first = records(table)[0]
        line = ["dense", *[""] * (len(keys) - 1 + len(named)), "100", "0"]
        rows.append([*line, *(number(first[column], digits) for _, _, _, digits, column in _BEHAVIOUR if column)])
    for row in records(table):
        line = [_key(name, row[name]) for name in keys] + [write(row) for _, write in named]
        rows.append([*line, *(_figure(row, metric, factor, digits) for _, metric, factor, digits, _ in _BEHAVIOUR)])
    headings = [*(_HEADINGS.get(name, name) for name in keys), *(head for head, _ in named)]
    return _table([*headings, *(head for head, *_ in _BEHAVIOUR)], rows)


def by_sparsity(methods: pd.DataFrame) -> str:
    """Every method as it comes, by sparsity."""
    table = pruned_unstructured(methods)
    if table.empty:
        return _NOTHING
    return behaviour(table.sort_values("sparsity_target", kind="stable"), ["sparsity_target", "method"])


def extras(methods: pd.DataFrame) -> str:
    """Refit and OWL beside the same method without them."""
    if methods.empty:
        return _NOTHING
    plain = of(methods, pattern="unstructured", targets="attention+mlp")
    special = plain[plain["refit"] | (plain["allocation"] != "default")]
    kept = plain.merge(special[["method", "sparsity_target"]].drop_duplicates(), on=["method", "sparsity_target"])
    kept = kept.sort_values(["method", "sparsity_target"], kind="stable")
    return behaviour(kept, ["method", "sparsity_target", "allocation", "refit"], dense=False)


def targets(methods: pd.DataFrame) -> str:
    """Which groups are fragile: zeros, and what they cost in all and each."""
    if methods.empty:
        return _NOTHING
    groups = methods[(methods["pattern"] == "unstructured") & (methods["variant"] == "masked")]
    groups = groups[(groups["allocation"] == "default") & ~groups["refit"]]
    named = groups[groups["targets"] != "attention+mlp"][["method", "sparsity_target"]].drop_duplicates()
    kept = groups.merge(named, on=["method", "sparsity_target"]).sort_values(
        ["method", "sparsity_target", "log_perplexity_difference"], kind="stable"
    )
    dense = methods[methods["method"] == "none"].iloc[0]
    rows = []
    for row in records(kept):
        # A pruned head that was tied becomes a copy of its own: more parameters, and zeros among them.
        zeros = (row["params_total"] - row["params_nonzero"] - dense["params_total"] + dense["params_nonzero"]) / 1e6
        cost = row["log_perplexity_difference"]
        rows.append(
            (
                row["method"],
                percent(row["sparsity_target"]),
                markdown(row["targets"].replace("+", ", ")),
                f"{zeros:.1f}",
                _figure(row, "perplexity", 1.0, 3),
                _figure(row, "log_perplexity_difference", 1.0, 3),
                number(10 * cost / zeros, 2),
            )
        )
    heads = (
        "method",
        "sparsity",
        "pruned",
        "zeros made, M",
        "perplexity",
        "log-perplexity lost",
        "lost per 10 M zeros",
    )
    return _table(heads, rows)


def structured(methods: pd.DataFrame) -> str:
    """Patterns that make the model really smaller."""
    if methods.empty:
        return _NOTHING
    kept = methods[methods["pattern"].isin(["neurons", "heads", "layers"])]
    reached = [
        ("zeros, prunable", lambda row: f"{number(100 * row['sparsity_prunable'], 3)} %"),
        ("bytes / dense", lambda row: number(row["bytes_ratio"], 3)),
        ("FLOPs / dense", lambda row: number(row["flops_executed"] / row["flops_dense"], 3)),
    ]
    return behaviour(kept, ["pattern", "method", "sparsity_target"], dense=False, more=reached)


def sizes(storage: pd.DataFrame) -> str:
    """MiB of the whole model by format and sparsity, dense references first."""
    if storage.empty:
        return _NOTHING
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
    return _table(["MiB (over dense float32)", *(percent(s) for s in sparsities)], lines)


def sizes_patterned(storage: pd.DataFrame) -> str:
    """MiB of patterns in their own formats."""
    if storage.empty:
        return _NOTHING
    rows = storage[storage["variant"].isin(["nm", "bsr"])]
    return _table(
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
        return _NOTHING
    return _table(
        ("OPT-125M's shape, float32, 30 %", "MiB"),
        ((label, number(mib, 5)) for label, mib, _ in old_and_stored(shape)),
    )


def shares(runs: Runs) -> str:
    """Shares of the parameters in both counts."""
    if "reference-untrained" not in runs:
        return _NOTHING
    groups = read_table(runs["reference-untrained"], "groups").to_pandas()
    dense = groups[(groups["variant"] == "dense") & groups["model"].str.contains("opt-125m")]
    rows = []
    for group in dict.fromkeys(dense["group"]):
        found = [of(dense, group=group, convention=convention)["param_fraction"] for convention in ("study", "unique")]
        rows.append((markdown(group), *(f"{100 * values.iloc[0]:.1f} %" if len(values) else "" for values in found)))
    return _table(("group", "old count", "each tensor once"), rows)


def scopes(scores: pd.DataFrame) -> str:
    """Magnitude ranked over the model, a matrix and a row."""
    if scores.empty:
        return _NOTHING
    kept = scores[scores["method"].str.startswith("magnitude")]
    kept = kept.sort_values("sparsity_target", kind="stable")
    return behaviour(kept, ["sparsity_target", "method"], dense=False)


def seeds(runs: Runs, name: str, metrics: Collection[str] = ()) -> str:
    """Spread over calibration seeds, of some metrics or all; nothing where the study has not run."""
    if name not in runs:
        return _NOTHING
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
    return _table(("method", "sparsity", "figure", "seeds", "mean", "smallest", "largest", "spread"), rows)


def finder(runs: Runs) -> Callable[..., Record]:
    """``cell(run, method=..., ...)``: the one row with these values, for figures inside sentences."""

    def cell(run: str, **wanted: Any) -> Record:
        defaults = {"refit": False, "allocation": "default", "targets": "attention+mlp"}
        found = of(table_of(runs, run), **{**defaults, **wanted})
        if len(found) != 1:
            raise UserError(f"a sentence of {_TEMPLATE} names {len(found)} cells of {run}: {wanted}")
        return records(found)[0]

    return cell


# ---- parts ----------------------------------------------------------------------------------------------------------

_NOTHING = "*Not measured yet: `make results` runs the study.*"
_HEADINGS = {"sparsity_target": "sparsity"}
_METRICS = {
    "top1_agreement": "top-1 agreement, %",
    "kl": "KL, nats",
    "nll": "nats per token",
    "bits_per_byte": "bits per byte",
}


def _half(methods: pd.DataFrame) -> pd.DataFrame:
    """Half of the weights of attention and MLP, in the patterns that keep single weights."""
    table = of(methods, sparsity_target=0.5, targets="attention+mlp", refit=False, allocation="default")
    if table.empty:
        return table
    patterned = set(table[table["pattern"] != "unstructured"]["method"])
    return table[table["pattern"].isin(["unstructured", "4:8", "2:4"]) & table["method"].isin(patterned)]


def _heads(heads: pd.DataFrame) -> pd.DataFrame:
    """What the study of heads adds to that of methods, which has two methods at 34 %."""
    return heads if heads.empty else heads[(heads["sparsity_target"] < 0.34) | (heads["method"] == "magnitude")]


def _blocks(storage: pd.DataFrame) -> pd.DataFrame:
    return of(storage, sparsity_target=0.5, variant="masked")


def _key(name: str, value: Any) -> str:
    if name == "sparsity_target":
        return percent(value)
    if name == "refit":
        return "yes" if value else ""
    return "" if name == "allocation" and value == "default" else markdown(SHARED.get(str(value), str(value)))


def _figure(row: Record, metric: str, factor: float, digits: int) -> str:
    """A figure and its interval; where the mark says so, that it is worse than guessing."""
    value: Any = row.get(metric)
    if missing(value):
        return ""
    value *= factor
    if metric == "perplexity" and "worse than guessing" in str(row.get("mark")):
        return "worse than guessing"
    lo: Any = row.get(f"{metric}_lo")
    hi: Any = row.get(f"{metric}_hi")
    span = "" if missing(lo) or missing(hi) else f" [{number(factor * lo, digits)}, {number(factor * hi, digits)}]"
    return f"{number(value, digits)}{span}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(headings)} |", "|" + "---|" * len(headings), *body]) if body else _NOTHING

"""Tables of how pruned models behave: a line a cell, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from aggregate.atlas.select import SHARED, of, pruned_unstructured
from aggregate.export import markdown
from aggregate.figures.data import Record, missing, records
from aggregate.figures.style import number, percent

NOTHING = "*Not measured yet: `make results` runs the study.*"

#: Columns of a table of behaviour: heading, metric, factor, digits, dense column.
_BEHAVIOUR = (
    ("top-1 agreement, %", "top1_agreement", 100.0, 3, None),
    ("KL, nats", "kl", 1.0, 3, None),
    ("perplexity", "perplexity", 1.0, 3, "perplexity_dense"),
    ("bits per byte", "bits_per_byte", 1.0, 4, "bits_per_byte_dense"),
)
_HEADINGS = {"sparsity_target": "sparsity"}


def as_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown of a table, or that there is nothing yet."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(headings)} |", "|" + "---|" * len(headings), *body]) if body else NOTHING


def behaviour(
    table: pd.DataFrame, keys: Sequence[str], *, dense: bool = True, order: Sequence[str] = (), more: Any = ()
) -> str:
    """A line a cell: its keys and its behaviour with intervals; the dense model first."""
    if table.empty:
        return NOTHING
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
        rows.append([*line, *(figure(row, metric, factor, digits) for _, metric, factor, digits, _ in _BEHAVIOUR)])
    headings = [*(_HEADINGS.get(name, name) for name in keys), *(head for head, _ in named)]
    return as_table([*headings, *(head for head, *_ in _BEHAVIOUR)], rows)


def by_sparsity(methods: pd.DataFrame) -> str:
    """Every method as it comes, by sparsity."""
    table = pruned_unstructured(methods)
    if table.empty:
        return NOTHING
    return behaviour(table.sort_values("sparsity_target", kind="stable"), ["sparsity_target", "method"])


def scopes(scores: pd.DataFrame) -> str:
    """Magnitude ranked over the model, a matrix and a row."""
    if scores.empty:
        return NOTHING
    kept = scores[scores["method"].str.startswith("magnitude")]
    kept = kept.sort_values("sparsity_target", kind="stable")
    return behaviour(kept, ["sparsity_target", "method"], dense=False)


def patterns(methods: pd.DataFrame) -> str:
    """Half of the weights of attention and MLP, in the patterns that keep single weights."""
    order = ["unstructured", "4:8", "2:4"]
    half = of(methods, sparsity_target=0.5, targets="attention+mlp", refit=False, allocation="default")
    if not half.empty:
        patterned = set(half[half["pattern"] != "unstructured"]["method"])
        half = half[half["pattern"].isin(order) & half["method"].isin(patterned)]
    return behaviour(half, ["method", "pattern"], dense=False, order=order)


def blocks(storage: pd.DataFrame) -> str:
    """Half of the weights in every pattern of the study of storage."""
    return behaviour(of(storage, sparsity_target=0.5, variant="masked"), ["method", "pattern"])


def extras(methods: pd.DataFrame) -> str:
    """Refit and OWL beside the same method without them."""
    if methods.empty:
        return NOTHING
    plain = of(methods, pattern="unstructured", targets="attention+mlp")
    special = plain[plain["refit"] | (plain["allocation"] != "default")]
    kept = plain.merge(special[["method", "sparsity_target"]].drop_duplicates(), on=["method", "sparsity_target"])
    kept = kept.sort_values(["method", "sparsity_target"], kind="stable")
    return behaviour(kept, ["method", "sparsity_target", "allocation", "refit"], dense=False)


def targets(methods: pd.DataFrame) -> str:
    """Which groups are fragile: zeros, and what they cost in all and each."""
    if methods.empty:
        return NOTHING
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
                figure(row, "perplexity", 1.0, 3),
                figure(row, "log_perplexity_difference", 1.0, 3),
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
    return as_table(heads, rows)


def structured(methods: pd.DataFrame, heads: pd.DataFrame) -> str:
    """Patterns that make the model really smaller, those of the study of heads last."""
    if methods.empty:
        return NOTHING
    both = pd.concat([methods, _heads(heads)], ignore_index=True)
    kept = both[both["pattern"].isin(["neurons", "heads", "layers"])]
    reached = [
        ("zeros, prunable", lambda row: f"{number(100 * row['sparsity_prunable'], 3)} %"),
        ("bytes / dense", lambda row: number(row["bytes_ratio"], 3)),
        ("FLOPs / dense", lambda row: number(row["flops_executed"] / row["flops_dense"], 3)),
    ]
    return behaviour(kept, ["pattern", "method", "sparsity_target"], dense=False, more=reached)


def _heads(heads: pd.DataFrame) -> pd.DataFrame:
    """What the study of heads adds to that of methods, which has two methods at 34 %."""
    return heads if heads.empty else heads[(heads["sparsity_target"] < 0.34) | (heads["method"] == "magnitude")]


def figure(row: Record, metric: str, factor: float, digits: int) -> str:
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


def _key(name: str, value: Any) -> str:
    if name == "sparsity_target":
        return percent(value)
    if name == "refit":
        return "yes" if value else ""
    return "" if name == "allocation" and value == "default" else markdown(SHARED.get(str(value), str(value)))

"""The headline: plain sentences, each computed from the tables, each with the key of its definition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from aggregate.figures.data import Combination, ModelData, Record, Subject, missing, records
from aggregate.figures.style import number, percent
from aggregate.floor import NO_MEASURABLE_DIFFERENCE, floor_of
from aggregate.report.phrases import MOST_METHODS, Fact, against, interval, known, listed, mib, share, signed
from aggregate.report.reach import breaks, furthest, gain, how_far, narrower
from aggregate.report.speed import break_evens, headlines

#: From so many times the perplexity of dense on, percent say less than a multiple.
_MULTIPLE = 3

WORSE = "worse than guessing"


class ModelFacts(NamedTuple):
    """What the headline says about one model."""

    subject: Subject
    trained: bool
    facts: list[Fact]


def facts_of(models: list[ModelData], study: pd.DataFrame) -> list[ModelFacts]:
    """Sentences of every model.

    Parameters
    ----------
    models
        Tables of each model, convention ``unique``.
    study
        Rows of the ``global`` table with convention ``study``.
    """
    return [ModelFacts(data.subject, data.trained, list(_facts(data, study))) for data in models]


def _facts(data: ModelData, study: pd.DataFrame) -> Iterator[Fact]:
    yield from (Fact(text, "speed") for text in (*headlines(data), *break_evens(data)))
    shown = data.shown_sparsity
    if shown is None:
        yield Fact("No pruned cell of this model is done yet.", "sparsity")
        return
    yield from furthest(data)
    yield from gain(data)
    yield from narrower(data)
    if data.trained and data.latency.empty:
        yield Fact("Speed was not measured in this study; a table [latency] in its file does that.", "speed")
    yield from _by_method(data, shown)
    chosen = _told(data, shown)
    reach: dict[str, list[str]] = {}
    steeper: list[Fact] = []
    for method in chosen:
        rows = data.of_method(data.pruned, method)
        near = min(rows["sparsity_target"].unique(), key=lambda s: (abs(s - shown), s))
        yield from _behaviour(data, method, records(rows[rows["sparsity_target"] == near])[0])
        if found := how_far(data, method):
            reach.setdefault(found, []).append(method.words)
        steeper += list(breaks(data, method))
    for found, names in reach.items():
        yield Fact(f"How far {listed(names)} can go, {found}.", "tipping")
    yield from steeper
    first = data.of_method(data.pruned, data.methods[0])
    at = first[first["sparsity_target"] == shown]
    for row in records(at):
        yield from _size(row)
        yield from _flips(row)
    # Formats that the first method was not stored in, each from the first method that was.
    told = set(at["variant"])
    for method in chosen:
        rows = data.of_method(data.pruned, method)
        for row in records(rows[rows["sparsity_target"] == shown]):
            if row["variant"] not in told:
                told.add(row["variant"])
                yield from _size(row, f" by {method.words}")
                yield from _flips(row)
    for row in records(at)[:1]:
        yield from _directions(row, data.methods[0].words)
    yield from _old_accounting(at, study)
    yield from _floor(data)
    if len(data.methods) > MOST_METHODS:
        yield Fact(f"{len(data.methods)} ways of pruning were measured; the table holds them all.", "pattern")


def _told(data: ModelData, shown: float) -> list[Combination]:
    """Methods that get sentences: the study's first, and those that keep most at the shown sparsity."""
    if not data.trained or "top1_agreement" not in data.pruned:
        return data.methods[:MOST_METHODS]

    def kept(method: Combination) -> float:
        rows = method.rows(data.pruned)
        found = rows.loc[rows["sparsity_target"] == shown, "top1_agreement"]
        return -1.0 if found.isna().all() else float(found.max())

    best = sorted(data.methods[1:], key=lambda method: -kept(method))[: MOST_METHODS - 1]
    return [method for method in data.methods if method == data.methods[0] or method in best]


def _by_method(data: ModelData, sparsity: float) -> Iterator[Fact]:
    """All methods at one sparsity beside each other, the one that keeps most first; untrained models rank nothing."""
    found = []
    for method in data.methods:
        rows = data.of_method(data.pruned, method)
        for row in records(rows[rows["sparsity_target"] == sparsity])[:1]:
            if known(row, "top1_agreement", "perplexity", "perplexity_dense"):
                value, span = _over_seeds(data, method, row, "top1_agreement", 100, " %")
                found.append((value, method.words, span, row))
    if len(found) < 2 or not data.trained:
        return
    found.sort(key=lambda one: -one[0])
    parts = [
        f"{words} keeps {share(value)}{span} of the top-1 choices ({_perplexity(row)})"
        for value, words, span, row in found[:MOST_METHODS]
    ]
    dense = number(found[0][3]["perplexity_dense"])
    text = f"By which method, at {percent(sparsity)}: {'; '.join(parts)}; dense has perplexity {dense}."
    best, second = found[0][3], found[1][3]
    bounds = ("top1_agreement_lo", "top1_agreement_hi")
    if known(best, *bounds) and known(second, *bounds) and second["top1_agreement_hi"] >= best["top1_agreement_lo"]:
        text += f" The intervals of {found[0][1]} and {found[1][1]} overlap: between these two this is no ranking."
    yield Fact(text, "top1_agreement")


def _behaviour(data: ModelData, method: Combination, row: Record) -> Iterator[Fact]:
    start = f"Pruned by {method.words} at {percent(row['sparsity_target'])}"
    if known(row, "sparsity"):
        start += f", which makes {percent(row['sparsity'])} of all its weights zero"
    parts = []
    if known(row, "top1_agreement"):
        value, span = _over_seeds(data, method, row, "top1_agreement", 100, " %")
        parts.append(f"keeps {share(value)}{span} of the dense model's top-1 choices")
    if known(row, "perplexity", "perplexity_dense"):
        value, span = _over_seeds(data, method, row, "perplexity")
        dense = number(row["perplexity_dense"])
        if data.trained and WORSE in str(row["mark"] or ""):
            parts.append(f"is {WORSE} (perplexity {dense} in the dense model, above the size of the vocabulary now)")
        else:
            parts.append(f"goes from perplexity {dense} to {number(value)}{span} ({_change(value, row)})")
    if parts:
        mark = "" if data.trained else " (untrained: random weights, so this says nothing about language)"
        yield Fact(f"{start}, the model {' and '.join(parts)}{mark}.", "top1_agreement")


def _perplexity(row: Record) -> str:
    return WORSE if WORSE in str(row["mark"] or "") else f"perplexity {number(row['perplexity'])}"


def _change(value: float, row: Record) -> str:
    """How much larger a perplexity is than that of dense: in percent, or as a multiple where that says more."""
    ratio = value / row["perplexity_dense"]
    return f"{number(ratio, 3)} times dense" if ratio >= _MULTIPLE else signed(ratio - 1)


def _over_seeds(
    data: ModelData, method: Combination, row: Record, metric: str, scale: float = 1.0, unit: str = ""
) -> tuple[float, str]:
    """A figure and its interval; with several calibration seeds their mean, and its interval or their range."""
    found = data.over_seeds(method, metric)
    same = found[(found["variant"] == row["variant"]) & (found["sparsity_target"] == row["sparsity_target"])]
    one = records(same)[0]
    if one["seeds"] == 1:
        return float(row[metric]), interval(row, metric, scale, unit)
    low, high = (number(scale * one[side], 3) for side in ("lo", "hi"))
    if one["interval"]:
        return float(one["value"]), f" [{low}, {high}{unit}] (mean of {one['seeds']} calibration seeds)"
    return float(one["value"]), f" (mean of {one['seeds']} calibration seeds, {low} to {high}{unit})"


def _size(row: Record, by: str = "") -> Iterator[Fact]:
    if not known(row, "bytes_total", "bytes_dense_float32"):
        return
    size = row["bytes_total"]
    text = (
        f"Stored as {row['variant']} at {percent(row['sparsity_target'])}{by} it takes {mib(size)}: "
        f"{against(size, row['bytes_dense_float32'])} dense float32 ({mib(row['bytes_dense_float32'])})"
    )
    if known(row, "bytes_dense_published") and row["published_dtype"] != "float32":
        text += (
            f", {against(size, row['bytes_dense_published'])} dense {row['published_dtype']}, in which it was "
            f"published ({mib(row['bytes_dense_published'])})"
        )
    if known(row, "bytes_source_file"):
        text += f", {against(size, row['bytes_source_file'])} the source file ({mib(row['bytes_source_file'])})"
    yield Fact(f"{text}.", "bytes")


def _flips(row: Record) -> Iterator[Fact]:
    if known(row, "top1_differs_from_masked"):
        differs = row["top1_differs_from_masked"]
        within = differs <= floor_of("top1_agreement", row)
        verdict = NO_MEASURABLE_DIFFERENCE if within else "rounding in another order"
        yield Fact(
            f"Run from {row['variant']}, {share(differs)} of the top-1 choices differ from those of the masked model "
            f"with the same weights ({verdict}).",
            "floor" if within else "top1_agreement",
        )


def _directions(row: Record, words: str) -> Iterator[Fact]:
    """Tokens that went wrong, and tokens that went right."""
    if known(row, "dense_only_right", "variant_only_right"):
        yield Fact(
            f"By {words} as {row['variant']} at {percent(row['sparsity_target'])}, "
            f"{row['dense_only_right']:,.0f} of the text's tokens that dense predicts are lost, and "
            f"{row['variant_only_right']:,.0f} that dense misses are won.",
            "accuracy",
        )


def _floor(data: ModelData) -> Iterator[Fact]:
    """What the dense model changes in itself when it is computed in another order."""
    for row in records(data.dense):
        if known(row, "floor_top1_agreement", "floor_kl", "floor_positions"):
            yield Fact(
                f"The dense model computed again, two windows in a batch and with another number of threads, keeps "
                f"{share(row['floor_top1_agreement'])} of its own choices at {row['floor_positions']:,.0f} positions "
                f"(KL {number(row['floor_kl'], 2)} nats): smaller differences are no measurable difference.",
                "floor",
            )


def _old_accounting(at: pd.DataFrame, study: pd.DataFrame) -> Iterator[Fact]:
    """Say where counting parameters only turns 'larger' into 'smaller'."""
    old = study.set_index("cell_id")["bytes_total"]
    for row in records(at):
        counted: Any = old.get(row["cell_id"])
        if missing(counted) or not known(row, "bytes_total", "bytes_ratio"):
            continue
        dense = row["bytes_total"] / row["bytes_ratio"]
        if counted < dense < row["bytes_total"]:
            yield Fact(
                f"{row['variant']} at {percent(row['sparsity_target'])} is larger than the dense model, not smaller: "
                f"{mib(row['bytes_total'])} against {mib(dense)}, because every kept weight carries an index. The old "
                f"study saw the opposite ({mib(counted)} in its count): it added up parameters, and the weights in "
                f"{row['variant']} are buffers, no parameters, so they were left out and weighed nothing.",
                "convention",
            )

"""Sentences that say how far each way of pruning can go, and what that gains."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from aggregate.figures.data import Combination, ModelData, Record, missing, records
from aggregate.figures.style import number, percent
from aggregate.report.phrases import MOST_METHODS, Fact, against, known, listed, mib, of_own_dtype, share
from aggregate.tipping import BELOW_FIRST, NO_DATA, NOT_REACHED

#: Metrics that a tolerance is set for, and the tolerance in words.
_TOLERANCES = {
    "perplexity": "within +{:.3g} % perplexity",
    "top1_agreement": "with at least {:.3g} % of the top-1 choices kept",
}


def furthest(data: ModelData) -> Iterator[Fact]:
    """How far every way of pruning goes within each tolerance; untrained models rank nothing."""
    if not data.trained or len(data.methods) < 2 or data.tipping.empty:
        return
    for metric, words in _TOLERANCES.items():
        yield from _ends(data, metric, words)


def _ends(data: ModelData, metric: str, words: str) -> Iterator[Fact]:
    rows = data.tipping[(data.tipping["metric"] == metric) & (data.tipping["answer"] != NO_DATA)]
    places: list[tuple[float, Combination, Record]] = []
    for method in data.methods:
        found = records(method.rows(rows).drop_duplicates("calibration_seed"))
        if found:
            row = min(found, key=_reach)
            places.append((_reach(row), method, row))
    if len(places) < 2:
        return
    tolerance = words.format(100 * places[0][2]["tolerance"])
    place, method, row = max(places, key=lambda one: one[0])
    # Whose first measured sparsity is already beyond, and larger than the best, may go further or not: nobody knows.
    unknown = [one.words for reach, one, other in places if reach == 0 and float(other["sparsity_beyond"]) > place]
    if place == 0:
        first = percent(min(float(one["sparsity_beyond"]) for _, _, one in places))
        yield Fact(
            f"How far it can be pruned {tolerance}: less than the first sparsity measured ({first} or more) by "
            f"each of {len(places)} ways of pruning.",
            "tipping",
        )
        return
    text = f"How far it can be pruned {tolerance}, by the {row['basis']}: by {method.words} "
    text += _to(place, row)
    others = [one for one in sorted(places, key=lambda one: -one[0]) if one[1] is not method and one[0] > 0]
    if others:
        ends = [f"by {one.words} {_to(reach, other)}" for reach, one, other in others[: MOST_METHODS - 1]]
        more = len(others) - len(ends)
        text += f"; {listed(ends)}" + (f"; {more} further ways of pruning less far" if more else "")
    if not unknown:
        text += f"; {len(places)} ways of pruning were measured"
    else:
        names = listed(unknown) if len(unknown) <= MOST_METHODS else f"{len(unknown)} other ways of pruning"
        tried = sorted({float(other["sparsity_beyond"]) for reach, _, other in places if reach == 0})
        least = percent(tried[0]) + " or more" * (len(tried) > 1)
        text += f"; {names} failed at the least that was tried, {least}, and below it nobody looked"
    yield Fact(f"{text}.", "tipping")


def _to(place: float, row: Record) -> str:
    """The end of a way of pruning, in words."""
    if row["answer"] == NOT_REACHED:
        return f"at least to {percent(place)}, the largest that was measured"
    bracket = f"between {percent(row['sparsity_within'])} and {percent(row['sparsity_beyond'])}"
    return f"to about {number(100 * place, 3)} % ({bracket}, which were measured)"


def gain(data: ModelData) -> Iterator[Fact]:
    """What the zeros are worth, by sparsity, in the lossless format that takes fewest bytes at most of them."""
    rows = data.pruned[(data.pruned["pattern"] == "unstructured") & data.pruned["lossless"].astype(bool)]
    rows = rows[rows["targets"] == data.pruned["targets"].mode().iloc[0]]
    if rows.empty or "bytes_total" not in rows or "bytes_dense_float32" not in rows:
        return
    rows = of_own_dtype(rows)
    smallest = rows.loc[rows.groupby("sparsity_target")["bytes_total"].idxmin(), "variant"].mode().iloc[0]
    one = rows[rows["variant"] == smallest].drop_duplicates("sparsity_target").sort_values("sparsity_target")
    if not (one["bytes_total"] < one["bytes_dense_float32"]).any():
        return
    at = []
    for row in records(one):
        change = against(row["bytes_total"], row["bytes_dense_float32"]).removesuffix(" than")
        at.append(f"{change.replace('the size of', 'the same size')} at {percent(row['sparsity_target'])}")
    text = f"What zeros save in memory, stored as {smallest}, against dense float32: {listed(at)}"
    yield Fact(f"{text}{_against_published(one)}.", "bytes")


def _against_published(rows: pd.DataFrame) -> str:
    """How the same sizes stand to the model as it was published; nothing where that was float32 or is not known."""
    first = records(rows)[0]
    if not known(first, "bytes_dense_published") or first["published_dtype"] == "float32":
        return ""
    size = first["bytes_dense_published"]
    text = f"; dense {first['published_dtype']}, in which it was published, takes {mib(size)}, "
    below = sorted(rows.loc[rows["bytes_total"] < size, "sparsity_target"])
    if not below:
        return f"{text}less than any of these"
    if len(below) == len(rows):
        return f"{text}more than any of these"
    return f"{text}which is undercut from {percent(below[0])} on"


def narrower(data: ModelData) -> Iterator[Fact]:
    """What the dense model is in narrower types: what pruning has to beat."""
    parts = [
        f"{row['variant']} takes {mib(row['bytes_total'])} and has perplexity {number(row['perplexity'])}"
        for row in records(data.table[data.table["method"] == "none"])
        if row["variant"] != "dense" and known(row, "bytes_total", "perplexity")
    ]
    if parts and data.trained:
        what = f"attention and MLP in a narrower type, all else in {data.subject.dtype}"
        yield Fact(f"Not pruned at all, {what}: {'; '.join(parts)}.", "pareto")


def _reach(row: Record) -> float:
    """Sparsity up to which something is known to hold; 0 below the first that was measured."""
    if row["answer"] == NOT_REACHED:
        return float(row["sparsity_within"])
    return 0.0 if row["answer"] == BELOW_FIRST else float(row["sparsity_estimate"])


def how_far(data: ModelData, method: Combination) -> str:
    """How far the method can go, in the words that follow its name; empty where nothing is known."""
    rows = method.rows(data.tipping)
    parts, basis = [], ""
    for metric, what in (
        ("perplexity", "perplexity within +{:.3g} % of dense"),
        ("top1_agreement", "at least {:.3g} % of the top-1 choices equal"),
    ):
        found = records(rows[rows["metric"] == metric])
        if not found or found[0]["answer"] == NO_DATA:
            continue
        row = found[0]
        seeds = [one for one in found if one["variant"] == row["variant"]]
        parts.append(f"{what.format(100 * row['tolerance'])}: {_answers(seeds)}")
        basis = row["basis"]
    return f"by the {basis}: {'; '.join(parts)}" if parts else ""


def breaks(data: ModelData, method: Combination) -> Iterator[Fact]:
    """Where log-perplexity becomes steeper."""
    rows = method.rows(data.tipping)
    for row in records(rows[(rows["metric"] == "perplexity") & rows["break_sparsity"].notna()])[:1]:
        place = percent(round(row["break_sparsity"], 3))
        text = f"Log-perplexity of {method.words} breaks into a steeper slope at {place}"
        if known(row, "break_lo", "break_hi", "break_share_two_pieces"):
            text += (
                f" [{percent(round(row['break_lo'], 3))}, {percent(round(row['break_hi'], 3))}]; "
                f"{share(row['break_share_two_pieces'])} of the draws prefer two pieces to one"
            )
        yield Fact(f"{text}.", "tipping")


def _answers(seeds: list[Record]) -> str:
    """The answer of one seed, or the range of several."""
    if len(seeds) == 1:
        return _answer(seeds[0])
    places = sorted(100 * row["sparsity_estimate"] for row in seeds if not missing(row["sparsity_estimate"]))
    below = [row for row in seeds if row["answer"] == BELOW_FIRST]
    kept = len(seeds) - len(places) - len(below)
    left = (
        f"up to {number(places[0], 3)} to {number(places[-1], 3)} % over {len(seeds)} calibration seeds"
        if places
        else ""
    )
    early = f"below {percent(below[0]['sparsity_beyond'])} with {len(below)} of {len(seeds)} seeds" if below else ""
    never = f"not left with {kept} of {len(seeds)} seeds" if kept else ""
    return ", ".join(part for part in (left, early, never) if part)


def _answer(row: Record) -> str:
    if row["answer"] == NOT_REACHED:
        return f"not left up to {percent(row['sparsity_within'])}, the largest that was measured"
    if row["answer"] == BELOW_FIRST:  # nothing was measured on the near side: a number would only follow the grid
        return f"somewhere below {percent(row['sparsity_beyond'])}, the first sparsity that was measured"
    bracket = f"between {percent(row['sparsity_within'])} and {percent(row['sparsity_beyond'])}"
    return f"up to about {number(100 * row['sparsity_estimate'], 3)} %, {bracket}"

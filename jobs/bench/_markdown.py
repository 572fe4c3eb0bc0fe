"""Rows of one or more result files as Markdown: a table a suite and model, one column a sparsity, conditions above."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.bench import Row
from jobs.bench._goals import goals_table

#: What a table's rows have in common is said once, above it.
_CONDITIONS = ("cpu_model", "isa", "threads", "threads_pinned", "clock", "torch", "repeats")


def as_markdown(results: Iterable[Mapping[str, Any]]) -> str:
    """Text of result files (`jobs.bench.write_results`), in their order; tables that differ in sparsity are joined.

    A cell is the ratio (baseline time / ours) with the quartiles of both sides at their worst and best for us. A table
    of what was reached of each goal follows where there are goals.
    """
    tables: dict[tuple[str, ...], list[Row]] = {}
    days: dict[tuple[str, ...], set[str]] = {}
    for result in results:
        day = datetime.datetime.fromtimestamp(result["finished_at_unix_s"], datetime.UTC).date().isoformat()
        for row in result["rows"]:
            key = (row["suite"], str(row.get("model", "")), *(str(row.get(name, "")) for name in _CONDITIONS))
            tables.setdefault(key, []).append(row)
            days.setdefault(key, set()).add(day)
    parts = [_table(key, rows, sorted(days[key])) for key, rows in tables.items()]
    return "\n".join(parts)


def _table(key: tuple[str, ...], rows: list[Row], days: list[str]) -> str:
    suite, model, *values = key
    said = [f"{name.replace('_', ' ')} {value}" for name, value in zip(_CONDITIONS, values, strict=True) if value]
    lines = [f"**{suite}{f', {model}' if model else ''}.** {'; '.join([*said, *days])}.", ""]
    if all("baseline_peak_gib" in row for row in rows):
        lines += ["| work | baseline | ours (s) | baseline (s) | ratio | ours, peak (GiB) | baseline, peak (GiB) |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in rows:
            times = [_seconds(row, side) for side in ("ours", "baseline")]
            peaks = [f"{row[f'{side}_peak_gib']:.2f}" for side in ("ours", "baseline")]
            cells = [row["work"], row["baseline"], *times, f"{row['ratio']:.2f}", *peaks]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"
    if all("sparsity" not in row for row in rows):
        lines += ["| work | against | ratio |", "|---|---|---|"]
        lines += [f"| {row['work']} | {_against(row)} | {_ratio(row)} |" for row in rows]
        return "\n".join(lines) + "\n"
    sparsities = sorted({row["sparsity"] for row in rows})
    lines.append("| work | against | " + " | ".join(f"{100 * s:.0f} %" for s in sparsities) + " |")
    lines.append("|---|---|" + "---|" * len(sparsities))
    for work, baseline in dict.fromkeys((row["work"], row["baseline"]) for row in rows):
        found = {row["sparsity"]: row for row in rows if (row["work"], row["baseline"]) == (work, baseline)}
        lossy = any(row.get("lossless") is False for row in found.values())
        cells = [_ratio(found[s]) if s in found else "" for s in sparsities]
        name = f"{work} (lossy)" if lossy else work
        lines.append(f"| {name} | {_against(*found.values())} | {' | '.join(cells)} |")
    for work in dict.fromkeys(row["work"] for row in rows if row["work"].endswith(" auto")):
        chosen = {row["sparsity"]: row["chosen"] for row in rows if row["work"] == work and row.get("chosen")}
        choices = "; ".join(f"at {100 * s:.0f} % {chosen[s]}" for s in sorted(chosen))
        lines += ["", f"`{work}` stored {choices}."] if choices else []
    if aims := goals_table(rows):
        lines += ["", *aims]
    return "\n".join(lines) + "\n"


def _seconds(row: Row, side: str) -> str:
    """Median, and where there are several the shortest and longest."""
    text = f"{row[f'{side}_s']:.2f}"
    return f"{text} [{row[f'{side}_s_low']:.2f}, {row[f'{side}_s_high']:.2f}]" if row["repeats"] > 1 else text


def _against(*rows: Row) -> str:
    """The baseline; where it is the best of several, which."""
    names = list(dict.fromkeys(row["baseline_is"] for row in rows if row.get("baseline_is")))
    baseline = str(rows[0]["baseline"])
    return baseline if names in ([], [baseline]) or baseline == "byte limit" else f"{baseline}: {', '.join(names)}"


def _ratio(row: Row) -> str:
    if isinstance(row["ratio"], str):
        return row["ratio"]
    text = f"{row['ratio']:.2f}" if row["ratio"] < 100 else f"{row['ratio']:.0f}"
    for mine, theirs in (("seconds", "baseline_seconds"), ("ms", "baseline_ms")):
        low, high = ("_q1", "_q3") if mine == "seconds" else ("_low", "_high")
        ends = [row.get(mine + low), row.get(mine + high), row.get(theirs + low), row.get(theirs + high)]
        if all(isinstance(end, float | int) for end in ends):
            mine_low, mine_high, theirs_low, theirs_high = (float(end) for end in ends if end is not None)
            text += f" [{theirs_low / mine_high:.2f}, {theirs_high / mine_low:.2f}]"
    if "ceiling" in row and row["baseline"] == "own dense":
        text += f" of {row['ceiling']:.2f}"
    elif "seconds" in row:
        text += f", {row['seconds'] * 1e3:.3g} ms"
    elif "share" in row:
        text = f"{row['share']:.3f} of the bytes"
    return text

"""The comparison of two runs as Markdown: what differs first and whole, then what is the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from aggregate.compare import SAME, Difference
from aggregate.diff import Comparison, Line
from aggregate.export import markdown
from aggregate.figures.style import ends, number

#: Figures that are the same and are printed where not all are asked for: a screen of them.
MOST_SAME = 30

_HEADINGS = ("cell", "figure", "first", "second", "difference")
_NOTE = (
    "Brackets: 95 % intervals over evaluation windows, those of a difference paired by window; of a speed-up its "
    "slowest and fastest round. The difference of a perplexity is the logarithm of the ratio."
)


def as_markdown(found: Comparison, most_same: int | None = None, where: str = "") -> str:
    """A comparison to read and to paste.

    Parameters
    ----------
    found
        What `aggregate.diff.diff_runs` found.
    most_same
        Figures that are the same to write down at most; None for all. Those that differ are all there.
    where
        Where the others are, for the sentence that counts them.
    """
    return "\n".join(_lines(found, most_same, where))


def difference_text(found: Difference) -> str:
    """A difference and its interval; of perplexity the logarithm of the ratio."""
    if math.isnan(found.value):
        return ""
    return number(found.value, 3) + ("" if math.isnan(found.lo) else f" {ends(found.lo, found.hi)}")


def figure_text(value: float, bounds: tuple[float, float]) -> str:
    """A figure of one run and its interval; empty where it was not measured."""
    if math.isnan(value):
        return ""
    if value.is_integer():
        return f"{value:,.0f}"  # a count; where it is an estimate without spread, 1 says as much as 1.00000
    return number(value, 6) + ("" if math.isnan(bounds[0]) else f" {ends(*bounds)}")


def why_text(found: Difference) -> str:
    """What a verdict rests on; counts that are equal need no reason and get a word."""
    return found.why or ("equal" if found.verdict == SAME else "counted")


def _lines(found: Comparison, most_same: int | None, where: str) -> Iterator[str]:
    yield "## Comparison"
    yield ""
    yield ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts.items() if count) or "No common cell."
    yield ""
    yield from (f"- {markdown(text)}" for text in found.changed)
    for cells, which in ((found.only_first, "first"), (found.only_second, "second")):
        if cells:
            yield f"- {len(cells)} cells only in the {which} run"
    differing = [line for line in found.lines if line.difference.verdict != SAME]
    same = [line for line in found.lines if line.difference.verdict == SAME]
    if differing:
        yield from ("", "### What differs", "")
        yield from _table([*_HEADINGS, "verdict"], [[*_figures(line), _verdict(line)] for line in differing])
    if same:
        shown = same[:most_same]
        yield from ("", "### What is the same", "")
        yield from _table([*_HEADINGS, "why"], [[*_figures(line), why_text(line.difference)] for line in shown])
        if left := len(same) - len(shown):
            yield ""
            yield f"{left} more figures are the same{where and f': {where}'}."
    if found.lines:
        yield from ("", _NOTE)


def _figures(line: Line) -> list[str]:
    return [
        line.what,
        line.metric,
        figure_text(line.first, line.first_bounds),
        figure_text(line.second, line.second_bounds),
        difference_text(line.difference),
    ]


def _verdict(line: Line) -> str:
    return f"{line.difference.verdict}: {why_text(line.difference)}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table whose columns line up on a terminal, too; figures to the right."""
    # Brackets of an interval are no link: nothing in round ones follows them.
    body = [[markdown(text) if n in (0, len(row) - 1) else text for n, text in enumerate(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *body, strict=True)]
    right = [2 <= n < len(_HEADINGS) for n in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if r else text.ljust(width) for text, width, r in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    yield line(headings)
    yield line(["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)])
    yield from map(line, body)

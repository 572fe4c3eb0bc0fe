"""The section of a report about another run."""

from __future__ import annotations

from typing import Any

from aggregate.compare import SAME
from aggregate.diff import Line, diff_runs
from aggregate.diff_text import difference_text, figure_text, why_text
from sparsehpc.core.layout import RunFolder


def comparison(first: RunFolder, second: RunFolder, most: int) -> dict[str, Any]:
    """What the section says.

    Parameters
    ----------
    first
        The other run.
    second
        The run of the report.
    most
        Rows that each of its tables shows.
    """
    found = diff_runs(first, second)
    differing = [line for line in found.lines if line.difference.verdict != SAME]
    same = [line for line in found.lines if line.difference.verdict == SAME]
    return {
        "verdicts": {name: count for name, count in found.verdicts.items() if count},
        "changed": found.changed,
        "only": (len(found.only_first), len(found.only_second)),
        "lines": [_row(line) for line in differing[:most]],
        "left": max(0, len(differing) - most),
        "same": [_row(line) for line in same[:most]],
        "same_left": max(0, len(same) - most),
    }


def _row(line: Line) -> tuple[str, ...]:
    return (
        line.what,
        line.metric,
        figure_text(line.first, line.first_bounds),
        figure_text(line.second, line.second_bounds),
        difference_text(line.difference),
        line.difference.verdict,
        why_text(line.difference),
    )

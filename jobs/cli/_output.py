"""How verbs speak: tables on a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Write JSON for programs.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="Study file, or the name of a shipped study.", show_default=False)
]


def echo(text: str = "") -> None:
    """One line on standard output."""
    typer.echo(text)


def echo_json(value: Any) -> None:
    """A value as JSON on standard output."""
    typer.echo(json.dumps(value, indent=1, default=str))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns that line up; numbers to the right."""
    body = [[str(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[n]) for row in body) and bool(body) for n in range(len(headings))]
    widths = [max([len(heading), *(len(row[n]) for row in body)]) for n, heading in enumerate(headings)]
    for line in [list(headings), *body]:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        echo("  ".join(cells).rstrip())


def on_terminal() -> bool:
    """Whether a person watches standard output."""
    return sys.stdout.isatty()


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return text in ("", "-")
    return True

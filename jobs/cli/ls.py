"""``sparsehpc ls``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json, table


class Kind(StrEnum):
    """What can be listed."""

    ALL = "all"
    MODELS = "models"
    STUDIES = "studies"
    METHODS = "methods"
    PATTERNS = "patterns"
    VARIANTS = "variants"
    METRICS = "metrics"
    CORPORA = "corpora"
    PROFILES = "profiles"
    RUNS = "runs"


@app.command("ls")
def list_all(
    kind: Annotated[Kind, typer.Argument(help="Only this.")] = Kind.ALL,
    json: Json = False,
) -> None:
    """List models, studies, methods, variants, corpora, profiles and the runs of this folder."""
    from jobs.listing import listing

    kinds = [k.value for k in Kind if k is not Kind.ALL] if kind is Kind.ALL else [kind.value]
    lists = {name: listing(name) for name in kinds}
    if json:
        echo_json(lists)
        return
    for number, (name, entries) in enumerate(lists.items()):
        if len(lists) > 1:
            echo(f"{'' if number == 0 else chr(10)}{name}:")
        if not entries:
            echo("  none")
            continue
        headings = list(entries[0])
        table(
            ["  " + headings[0], *headings[1:]],
            [["  " + str(e[headings[0]]), *(e[h] for h in headings[1:])] for e in entries],
        )

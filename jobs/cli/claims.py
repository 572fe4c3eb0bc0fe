"""``sparsehpc claims RUN...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json


@app.command()
def claims(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, or folders that hold their tables.", show_default=False),
    ],
    claims: Annotated[Path, typer.Option("--claims", help="Claims file.")] = Path("docs/results/claims.toml"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Write Markdown, with all evidence.")] = False,
    json: Json = False,
) -> None:
    """Judge claims by the tables of runs: true, false, depends, or not measured, with figures and cell ids.

    A claims file holds data, no code: it names tables, conditions and columns, and the rule for a verdict.
    """
    from aggregate.claims import judge_runs
    from aggregate.claims.text import as_lines, as_markdown
    from sparsehpc.core.errors import UserErrors
    from sparsehpc.core.layout import RunFolder

    if json and markdown:
        raise UserErrors("claims cannot be written", ["give --json or --markdown, not both"])
    if absent := [str(run) for run in runs if not run.is_dir()]:
        raise UserErrors("claims cannot be judged", [f"there is no folder {name}" for name in absent])
    rulings = judge_runs([RunFolder(run) for run in runs], claims)
    if json:
        echo_json([ruling.as_json() for ruling in rulings])
    else:
        echo(as_markdown(rulings).rstrip() if markdown else as_lines(rulings))

"""``sparsehpc claims RUN...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json

#: The ledger of the source tree, wherever the command is called.
_CLAIMS = Path(__file__).parents[2] / "docs" / "results" / "claims.toml"


@app.command()
def claims(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, or folders that hold their tables.", show_default=False),
    ],
    claims: Annotated[
        Path | None, typer.Option("--claims", help="Claims file.", show_default="those of the old study")
    ] = None,
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
    claims = claims or _CLAIMS
    if claims == _CLAIMS and not claims.is_file():
        raise UserErrors(
            "claims cannot be judged",
            ["this installation has no claims of its own"],
            "sparsehpc claims --claims FILE RUN",
        )
    rulings = judge_runs([RunFolder(run) for run in runs], claims)
    if json:
        echo_json([ruling.as_json() for ruling in rulings])
    else:
        echo(as_markdown(rulings).rstrip() if markdown else as_lines(rulings))

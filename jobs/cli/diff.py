"""``sparsehpc diff RUN_A RUN_B``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run that is compared with.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Run that is judged.", show_default=False)],
    json: Json = False,
) -> None:
    """Compare two runs cell by cell: same, better, worse, or not comparable and why. As Markdown.

    Ends with status 1 where a figure is worse or cannot be compared, or where RUN_B lacks a cell of RUN_A.
    """
    from aggregate.diff import diff_runs
    from jobs.folder import existing_run

    found = diff_runs(existing_run(first), existing_run(second))
    if json:
        echo_json(found.as_json())
    else:
        echo(found.as_markdown())
    raise typer.Exit(found.exit_code)

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
    everything: Annotated[bool, typer.Option("--all", help="Print all figures that are the same, too.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="File that gets the comparison with all figures.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Compare two runs cell by cell: same, better, worse, or not comparable and why. As Markdown.

    Figures that differ come first, all of them; then those that are the same, a screen of them unless --all is given.
    Ends with status 1 where a figure is worse or cannot be compared, or where RUN_B lacks a cell of RUN_A.
    """
    from aggregate.diff import diff_runs
    from aggregate.diff_text import MOST_SAME, as_markdown
    from jobs.folder import existing_run
    from sparsehpc.core.files import write_text

    found = diff_runs(existing_run(first), existing_run(second))
    if out is not None:
        write_text(out, as_markdown(found) + "\n")
    if json:
        echo_json(found.as_json())
    else:
        where = "`--all` prints them, `--out FILE` writes them" if out is None else f"{out} holds all"
        echo(as_markdown(found, None if everything else MOST_SAME, where))
    raise typer.Exit(found.exit_code)

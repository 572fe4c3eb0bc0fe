"""``sparsehpc report RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, Run, echo, echo_json


@app.command()
def report(
    run: Run,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Compare with another run.", show_default=False)
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    json: Json = False,
) -> None:
    """Write the report from tables and figures: one offline page, and a summary to paste."""
    from aggregate.report import write_report
    from jobs.folder import existing_run
    from sparsehpc.core.errors import UserError

    folder = existing_run(run)
    if not (folder.tables / "coverage.parquet").is_file():
        raise UserError(f"{folder.root} has no tables yet", f"sparsehpc aggregate {run} writes them")
    page = write_report(folder, None if against is None else existing_run(against))
    if json:
        echo_json({"run": str(folder.root), "report": str(page)})
    else:
        echo(f"report: {page}")
    if show:
        typer.launch(page.resolve().as_uri())

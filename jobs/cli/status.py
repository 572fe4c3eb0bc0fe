"""``sparsehpc status RUN``."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, Run, echo, echo_json, table


@app.command()
def status(
    run: Run,
    cells: Annotated[bool, typer.Option("--cells", help="List every cell.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="List the cells that failed or are damaged, with why.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what is done, failed, damaged and missing, and what to do next. Reads files only."""
    from jobs.folder import existing_run
    from jobs.status import run_status

    found = run_status(existing_run(run))
    if json:
        echo_json(found.as_json(with_cells=cells or failed))
        return
    table(found.headings, found.class_rows())
    if cells or failed:
        echo()
        table(("cell", "state", "what", "why"), found.cell_rows(only_failed=not cells))
    elif found.causes:
        echo("failed: " + ", ".join(f"{count} {cause}" for cause, count in sorted(found.causes.items())))
    echo(f"next: {found.next_command(run)}")

"""``sparsehpc logs RUN CELL``."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, Run, echo, echo_json


@app.command()
def logs(
    run: Run,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Cell id, or its unmistakable beginning.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines of stderr.")] = 30,
    json: Json = False,
) -> None:
    """Show where a cell stands, why it failed, the last lines of its job's stderr, and where the rest is."""
    from jobs.folder import existing_run
    from jobs.manage import cell_logs
    from jobs.plan_file import find_cell

    folder = existing_run(run)
    found = find_cell(folder.plan, cell)
    said = cell_logs(folder, found.cell_id, lines)
    if json:
        echo_json(
            {
                "cell_id": found.cell_id,
                "state": said.fate.state,
                "cause": said.fate.cause,
                "reason": said.fate.reason,
                "stderr": said.tail,
                "files": [str(path) for path in said.files],
            }
        )
        return
    echo(f"{found.cell_id}: {found.label()}")
    echo(f"{said.fate.state} {said.fate.cause}".strip() + (f": {said.fate.reason}" if said.fate.reason else ""))
    if said.tail:
        echo("--- stderr ---")
        echo(said.tail)
        echo("--------------")
    for path in said.files:
        echo(str(path))
    if said.fate.state in ("failed", "damaged"):
        force = " --force" if said.fate.cause == "CODE" else ""
        echo(f"next: sparsehpc retry {run}{force}")

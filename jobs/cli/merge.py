"""``sparsehpc merge RUN... --out DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of one study.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New run folder.", show_default=False)],
    json: Json = False,
) -> None:
    """Join runs of one study that were made on different clusters. Runs that contradict each other are refused."""
    from aggregate.merge import merge_runs
    from jobs.folder import existing_run

    merged = merge_runs([existing_run(run) for run in runs], out)
    if json:
        echo_json(
            {
                "run": str(merged.run.root),
                "coverage": merged.coverage.counts,
                "taken": merged.taken,
                "doubles": merged.doubles,
            }
        )
        return
    for run, count in merged.taken.items():
        echo(f"{count} cells from {run}")
    echo(f"{merged.doubles} cells were in several runs and agree")
    echo(", ".join(f"{count} {state}" for state, count in merged.coverage.counts.items()))
    echo(f"run: {merged.run.root}")

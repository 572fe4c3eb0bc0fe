"""``sparsehpc aggregate RUN``."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, Run, echo, echo_json


@app.command()
def aggregate(
    run: Run,
    compact: Annotated[
        bool, typer.Option("--compact", help="Pack the shards first: for thousands of cells that are read again.")
    ] = False,
    json: Json = False,
) -> None:
    """Write tables and figures from the cells that are done. A partial run gives what it has."""
    from aggregate.api import aggregate_run
    from jobs.folder import existing_run

    folder = existing_run(run)
    coverage = aggregate_run(folder, compact=compact)
    if json:
        echo_json({"run": str(folder.root), "coverage": coverage.counts, "tables": str(folder.tables)})
    else:
        echo(", ".join(f"{count} {state}" for state, count in coverage.counts.items()))
        echo(f"tables: {folder.tables}; figures: {folder.figures}")

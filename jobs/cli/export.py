"""``sparsehpc export RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Run, echo


@app.command()
def export(
    run: Run,
    kind: Annotated[str, typer.Option("--format", help="markdown, latex, csv or parquet.")] = "markdown",
    table: Annotated[str, typer.Option(help="global, groups, layers, tensors, windows, tipping, ...")] = "global",
    columns: Annotated[str, typer.Option(help="Columns, separated by commas.", show_default="the usual ones")] = "",
    convention: Annotated[str, typer.Option(help="unique or study.")] = "unique",
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
) -> None:
    """Write a table to paste into a paper, with intervals, a methods paragraph and a citation."""
    from aggregate.export import export_table
    from jobs.folder import existing_run

    names = [name.strip() for name in columns.split(",") if name.strip()]
    text = export_table(existing_run(run), kind=kind, table=table, columns=names, convention=convention, out=out)
    echo(text if out is None else f"written: {text}")

"""``sparsehpc run STUDY``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, StudyName, echo, echo_json
from jobs.pack import CELLS_A_JOB


class Executor(StrEnum):
    """Where cells are computed."""

    LOCAL = "local"
    DEBUG = "debug"


@app.command()
def run(
    study: StudyName,
    executor: Annotated[
        Executor, typer.Option(help="'local': processes of this machine; 'debug': inside this process.")
    ] = Executor.LOCAL,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/NAME")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 1,
    pack: Annotated[int, typer.Option(min=1, help="Cells that share one pass over a model.")] = CELLS_A_JOB,
    summary: Annotated[
        bool, typer.Option("--report/--no-report", help="Tables, figures and report at the end.")
    ] = True,
    json: Json = False,
) -> None:
    """Run a study on this machine, and write tables, figures and a report.

    Run it again to finish what was interrupted: cells that are done are not computed twice.
    """
    from jobs.run import run_study
    from jobs.study import find_study

    try:
        outcome = run_study(
            find_study(study),
            executor=executor.value,
            out=out,
            side_by_side=jobs,
            cells_a_job=pack,
            summary=summary,
            quiet=json,
        )
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; finished cells are kept: sparsehpc run {study} goes on", err=True)
        raise typer.Exit(130) from None
    report = outcome.run.report / "index.html"
    if json:
        echo_json(
            {
                "run": str(outcome.run.root),
                "cells": outcome.states,
                "computed": outcome.computed,
                "report": str(report) if report.exists() else None,
            }
        )
    else:
        total = sum(outcome.states.values())
        if not outcome.computed:
            echo(f"nothing to do: all {total} cells of {outcome.run.root} are done")
        else:
            echo(
                ", ".join(f"{count} {state}" for state, count in sorted(outcome.states.items())) + f" of {total} cells"
            )
        if report.exists():
            echo(f"report: {report}")
    if not outcome.complete:
        typer.echo(f"sparsehpc status {outcome.run.root} says what failed and why", err=True)
        raise typer.Exit(1)

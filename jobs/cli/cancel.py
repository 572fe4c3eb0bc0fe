"""``sparsehpc cancel RUN``."""

from __future__ import annotations

import typer

from jobs.cli import app
from jobs.cli._cluster import Yes
from jobs.cli._output import Json, Run, echo, echo_json


@app.command()
def cancel(run: Run, yes: Yes = False, json: Json = False) -> None:
    """Cancel every job of a run that waits or runs. What is done stays; 'retry' sends the rest again."""
    from jobs.folder import existing_run
    from jobs.manage import cancel_jobs, cancellable

    folder = existing_run(run.absolute())
    jobs = cancellable(folder)
    if jobs and not (yes or typer.confirm(f"cancel {len(jobs)} jobs?", err=True)):
        raise typer.Exit(1)
    problems = cancel_jobs(folder, jobs)
    if json:
        echo_json(
            {
                "cancelled": [job.job_name for job in jobs if job.job_name not in problems],
                "problems": [*problems.values()],
            }
        )
    else:
        echo(f"{len(jobs) - len(problems)} jobs cancelled" if jobs else "nothing waits or runs")
        for problem in problems.values():
            typer.echo(f"note: {problem}", err=True)
        echo(f"next: sparsehpc status {run}")
    if problems:
        raise typer.Exit(1)

"""``sparsehpc submit STUDY``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, StudyName, echo, echo_json, table


@app.command()
def submit(
    study: StudyName,
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="Cluster profile: a name or a file.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/NAME")] = None,
    pack: Annotated[int, typer.Option(min=1, help="Cells a job, at most.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show cells, jobs and scripts; send nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    max_core_hours: Annotated[float | None, typer.Option(min=0, help="Refuse to ask for more than this.")] = None,
    json: Json = False,
) -> None:
    """Send the cells that are not done to a Slurm cluster, one array of jobs per resource class.

    Run it again to send what failed or did not fit into the queue.
    """
    from jobs.plan import make_plan
    from jobs.study import find_study, load_study
    from jobs.submit import cells_of, class_totals, propose, send
    from slurm.profile import load_profile
    from sparsehpc.core.errors import UserError

    loaded = load_study(find_study(study))
    cluster = load_profile(profile)
    plan = make_plan(loaded)
    proposal = propose(loaded, plan, cluster, out=out, pack=pack, ask_cluster=not dry_run)
    headings = ("class", "arrays", "jobs", "cells", "core-hours", "GPU-hours")
    if not json:
        echo(
            f"{loaded.name}: {len(plan.cells)} cells, {proposal.done} done, {proposal.queued} in the queue, "
            f"{cells_of(proposal.arrays)} to send, {proposal.later} later"
        )
        if proposal.arrays:
            table(headings, class_totals(proposal.arrays))
            echo("hours are the most that the jobs can take: what they ask for")
    if max_core_hours is not None and proposal.core_hours > max_core_hours:
        raise UserError(
            f"the jobs ask for {proposal.core_hours:.1f} core-hours, more than --max-core-hours {max_core_hours:g}",
            "ask for less in [resources.*], or raise the limit",
        )
    sent = []
    if dry_run:
        if not json:
            for array in proposal.arrays:
                echo(f"\n# {array.folder / 'submit.sh'}")
                typer.echo(array.script(cluster), nl=False)
    elif proposal.arrays:
        if not (yes or typer.confirm("submit?", err=True)):
            raise typer.Exit(1)
        sent = send(proposal, loaded, plan, cluster, lambda text: typer.echo(text, err=True))
    if json:
        echo_json(
            {
                "run": str(proposal.run.root),
                "cells": {"done": proposal.done, "queued": proposal.queued, "later": proposal.later},
                "classes": [dict(zip(headings, row, strict=True)) for row in class_totals(proposal.arrays)],
                "scripts": [array.script(cluster) for array in proposal.arrays] if dry_run else [],
                "job_ids": [submission.job_id for submission in sent],
            }
        )
    elif not dry_run:
        echo(f"next: sparsehpc status {proposal.run.root}" if proposal.arrays else "nothing to send")

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
    pack: Annotated[
        int | None, typer.Option(min=1, help="Cells a job.", show_default="by estimated minutes, at most 20")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells, jobs, price and scripts; send nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    max_core_hours: Annotated[
        float | None, typer.Option(min=0, help="Refuse if the jobs could take more than this.")
    ] = None,
    aggregate: Annotated[
        bool, typer.Option(help="Also submit a job that writes tables and report after all others.")
    ] = True,
    json: Json = False,
) -> None:
    """Send cells that were never sent to a Slurm cluster, one array of jobs per resource class, and return.

    Run it again to send what did not fit into the queue, or what an interruption left; 'retry' sends what failed.
    """
    import shutil

    from jobs.extend import with_extensions
    from jobs.folder import default_folder
    from jobs.plan import make_plan
    from jobs.propose import TOTALS, class_totals, propose
    from jobs.run import prepare_models
    from jobs.study import find_study, load_study
    from jobs.submit import script_of, send_all, settle_run
    from slurm.profile_file import load_profile
    from sparsehpc.core.errors import UserError
    from sparsehpc.core.layout import RunFolder

    loaded = load_study(find_study(study))
    cluster = load_profile(profile)
    folder = RunFolder((out or default_folder(loaded)).absolute())
    plan = with_extensions(make_plan(loaded), folder)
    if not dry_run and not folder.plan.exists():
        # Before the scheduler is asked, and before the user is.
        prepare_models(loaded, quiet=json)
    live = shutil.which("squeue") is not None and not dry_run
    if live:
        settle_run(folder, cluster)
    proposal = propose(loaded, plan, cluster, out=out, pack=pack, ask_cluster=live)
    if not json:
        echo(
            f"{loaded.name}: {len(plan.cells)} cells, {proposal.done} done, {proposal.queued} on their way, "
            f"{proposal.failed} failed, {proposal.cells} to send, {proposal.later} later"
        )
        for problem in proposal.problems:
            typer.echo(f"note: {problem}", err=True)
        if proposal.run.root.is_relative_to(Path.home()):
            typer.echo(
                "note: the run folder lies in your home; on clusters it belongs on a project disk (--out)", err=True
            )
        if proposal.arrays:
            table(TOTALS, class_totals(proposal.arrays))
            echo("hours are estimated; 'at most' is what the wall times allow")
    at_most = proposal.hours(asked=True)
    if max_core_hours is not None and at_most > max_core_hours:
        raise UserError(
            f"the jobs could take {at_most:.1f} core-hours, more than --max-core-hours {max_core_hours:g}",
            "ask for less in [resources.*], pack more cells a job, or raise the limit",
        )
    scripts = [script_of(array, cluster, proposal.run, number) for number, array in enumerate(proposal.arrays)]
    sent = []
    if dry_run:
        if not json:
            for text in scripts:
                echo()
                typer.echo(text, nl=False)
    elif proposal.arrays:
        if not (yes or typer.confirm("submit?", err=True)):
            raise typer.Exit(1)
        try:
            sent = send_all(
                proposal, loaded, plan, cluster, lambda text: typer.echo(text, err=True), aggregate=aggregate
            )
        except KeyboardInterrupt:
            typer.echo("\nstopped; what was sent stays sent: the same command sends the rest", err=True)
            raise typer.Exit(130) from None
    if json:
        counts = {name: getattr(proposal, name) for name in ("done", "queued", "failed", "later")}
        echo_json(
            {
                "run": str(proposal.run.root),
                "cells": {**counts, "to_send": proposal.cells},
                "classes": [dict(zip(TOTALS, row, strict=True)) for row in class_totals(proposal.arrays)],
                "scripts": scripts if dry_run else [],
                "job_ids": [submission.job_id for submission in sent],
            }
        )
    elif not dry_run:
        if not proposal.arrays:
            echo("nothing to send")
        if proposal.failed:
            echo(f"{proposal.failed} cells failed: sparsehpc retry {proposal.run.root}")
        echo(f"next: sparsehpc status {proposal.run.root}")

"""``sparsehpc retry RUN``."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._cluster import Yes, profile_of
from jobs.cli._output import Json, Run, echo, echo_json, table


@app.command()
def retry(
    run: Run,
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="Cluster profile.", show_default="the one used last")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also send what failed for its code or input, once that is repaired.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; send nothing.")] = False,
    yes: Yes = False,
    aggregate: Annotated[
        bool, typer.Option(help="Also submit a job that writes tables and report after all others.")
    ] = True,
    json: Json = False,
) -> None:
    """Send failed and damaged cells again with the remedy for their cause, up to a cap.

    Out of memory: twice the memory. Out of time: 1.5 times the minutes. A failed node: without that node. Cancelled,
    lost or damaged: as before. Code: only with --force.
    """
    from jobs.folder import existing_run
    from jobs.inputs import load_inputs
    from jobs.price import run_prices
    from jobs.propose import TOTALS, class_totals, room
    from jobs.retry import plan_retry, retry_arrays
    from jobs.submit import send_arrays

    folder = existing_run(run.absolute())
    inputs = load_inputs(folder)
    cluster = profile_of(folder, profile)
    plan = plan_retry(folder, {name: inputs.resource(name) for name in inputs.resources}, cluster, force=force)
    prices = run_prices(folder, inputs, [cell for group in plan.remedies for cell in group.cells])
    arrays, later = retry_arrays(plan, prices, cluster, *room(cluster))
    if not json:
        echo(", ".join(f"{count} {cause}" for cause, count in sorted(plan.causes.items())) or "nothing to send again")
        for cell_id, reason in plan.left[:20]:
            echo(f"left: {cell_id}: {reason}")
        if len(plan.left) > 20:
            echo(f"left: {len(plan.left) - 20} more")
        if arrays:
            table(TOTALS, class_totals(arrays))
        if later:
            echo(f"{later} cells have to wait until there is room in the queue: retry again")
    sent = []
    if arrays and not dry_run:
        if not (yes or typer.confirm("submit?", err=True)):
            raise typer.Exit(1)
        sent = send_arrays(
            folder,
            arrays,
            cluster,
            lambda text: typer.echo(text, err=True),
            aggregate=aggregate,
            again=plan.cell_ids,
        )
    if json:
        echo_json(
            {
                "causes": dict(plan.causes),
                "left": [{"cell_id": cell_id, "reason": reason} for cell_id, reason in plan.left],
                "classes": [dict(zip(TOTALS, row, strict=True)) for row in class_totals(arrays)],
                "later": later,
                "job_ids": [submission.job_id for submission in sent],
            }
        )
    elif not dry_run:
        echo(f"next: sparsehpc status {run}")

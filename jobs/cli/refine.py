"""``sparsehpc refine RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli import app
from jobs.cli._cluster import Yes, profile_of
from jobs.cli._output import Json, Run, echo, echo_json, table
from jobs.cli.run import Executor

if TYPE_CHECKING:
    from jobs.refine import Step


@app.command()
def refine(
    run: Run,
    metric: Annotated[str, typer.Option(help="'perplexity' or 'top1_agreement'.")] = "perplexity",
    within: Annotated[str, typer.Option(help="Stop where the bracket is no wider than this.")] = "0.02",
    tolerance: Annotated[
        float | None,
        typer.Option(help="Accepted rise of perplexity, or least share of equal choices.", show_default="0.05, or 0.9"),
    ] = None,
    cells: Annotated[int, typer.Option(min=1, help="Cells that one way of pruning gets at most.")] = 8,
    executor: Annotated[
        Executor, typer.Option(help="'local': processes of this machine; 'debug': inside this process.")
    ] = Executor.LOCAL,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 1,
    submit: Annotated[bool, typer.Option("--submit", help="Send one round to the cluster and return.")] = False,
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="Cluster profile.", show_default="the one used last")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the next round; add and compute nothing.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Add cells by bisection around the tipping point of every way of pruning, and run or submit them.

    Each round halves the bracket between the largest sparsity within the tolerance and the smallest beyond it: about
    six cells in place of a grid. Cells are added to the run's own plan; 'extensions.json' in its folder records them.
    """
    from jobs.folder import existing_run
    from jobs.inputs import load_inputs
    from jobs.refine import Wish, plan_round, refine_here

    wish = Wish.parse(metric, within, tolerance, cells)
    folder = existing_run(run)
    load_inputs(folder)
    sent: list[str] = []
    if dry_run or submit:
        from aggregate.api import aggregate_run

        aggregate_run(folder, figures=False)
        steps = plan_round(folder, wish)
        if submit and not dry_run:
            from jobs.submit_more import submit_round

            cluster = profile_of(folder, profile)
            if not (yes or json or typer.confirm("submit?", err=True)):
                raise typer.Exit(1)
            sent = submit_round(folder, steps, wish, cluster, lambda text: typer.echo(text, err=True))
    else:
        try:
            steps = refine_here(folder, wish, executor=executor.value, side_by_side=jobs, quiet=json)
        except KeyboardInterrupt:
            typer.echo(f"\nstopped; finished cells are kept: sparsehpc refine {run} goes on", err=True)
            raise typer.Exit(130) from None
    if json:
        echo_json({"run": str(folder.root), "brackets": [_as_json(step) for step in steps], "job_ids": sent})
        return
    table(
        ("model", "method", "pattern", "variant", metric.replace("_", " "), "cells added", "state"),
        [
            (s.cell.model, s.cell.pruning.method, s.cell.pruning.pattern, s.cell.variant, s.words, s.added, _state(s))
            for s in steps
        ],
    )
    _next(steps, run, dry_run=dry_run, submitted=submit)


def _state(step: Step) -> str:
    wanted = "" if step.wanted is None else f", next {step.wanted.pruning.sparsity}"
    return f"{step.state}{': ' + step.why if step.why else ''}{wanted}"


def _as_json(step: Step) -> dict[str, Any]:
    pruning = step.cell.pruning
    return {
        "model": step.cell.model,
        "method": pruning.method,
        "pattern": pruning.pattern,
        "variant": step.cell.variant,
        "answer": step.answer,
        "within": str(step.low),
        "beyond": str(step.high),
        "cells_added": step.added,
        "state": step.state,
        "why": step.why,
        "next": None if step.wanted is None else step.wanted.pruning.sparsity,
    }


def _next(steps: Sequence[Step], run: Any, *, dry_run: bool, submitted: bool) -> None:
    todo = sum(step.wanted is not None for step in steps)
    if dry_run:
        echo(f"{todo} cells would be added or computed")
    elif submitted and todo:
        echo(f"next: sparsehpc status {run}; once they are done, the same command adds the next round")
    elif submitted:
        echo("nothing to send")

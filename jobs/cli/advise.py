"""``sparsehpc advise MODEL|RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json


@app.command()
def advise(
    what: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="Run folder, or a model that runs/* hold.", show_default=False)
    ],
    max_ppl: Annotated[
        str | None, typer.Option(help="Largest perplexity: +5% over dense, or a number.", show_default=False)
    ] = None,
    max_mib: Annotated[float | None, typer.Option(help="Largest size in MiB.", show_default=False)] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Smallest share of equal top-1 choices.", show_default=False)
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Smallest measured speed against dense.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Name method, sparsity and format that keep your limits, with the evidence, or what comes closest.

    Ends with status 1 where nothing qualifies.
    """
    from aggregate.advise import Limits, advise_all, runs_of
    from jobs.folder import existing_run
    from sparsehpc.core.errors import UserError

    limits = Limits.parse(max_ppl, max_mib, min_agreement, min_speedup)
    if Path(what).is_dir():
        found = advise_all([existing_run(Path(what))], limits)
    else:
        runs = runs_of(what, Path("runs"))
        if not runs:
            raise UserError(
                f"{what} is no run folder, and no run in runs/ holds such a model", "sparsehpc run STUDY makes one"
            )
        found = advise_all(runs, limits, what)
    if json:
        echo_json([{"run": str(run.root), **advice.as_json()} for run, advice in found])
    else:
        for run, advice in found:
            echo(f"{run.root}: {advice.text()}")
    if not any(advice.qualifying for _, advice in found):
        raise typer.Exit(1)

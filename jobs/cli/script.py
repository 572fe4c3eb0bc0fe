"""``sparsehpc script RUN CELL``."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Run


@app.command()
def script(
    run: Run,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Cell id, or its unmistakable beginning.")],
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="Cluster profile: a name or a file.", show_default="generic-cpu/-gpu")
    ] = "",
) -> None:
    """Print a plain sbatch file that computes one cell, for running by hand."""
    from jobs.folder import existing_run
    from jobs.inputs import load_inputs
    from jobs.plan_file import find_cell
    from slurm.profile_file import load_profile
    from slurm.script import hand_script

    folder = existing_run(run)
    found = find_cell(folder.plan, cell)
    resources = load_inputs(folder).resource(found.resource)
    name = profile or f"generic-{'gpu' if resources.gpus else 'cpu'}"
    typer.echo(hand_script(folder.root, found.cell_id, resources, load_profile(name)), nl=False)

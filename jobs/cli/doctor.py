"""``sparsehpc doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json


@app.command()
def doctor(
    profile: Annotated[
        str,
        typer.Option(
            "--profile", "-p", help="Also submit one small job a class, and check the nodes.", show_default=False
        ),
    ] = "",
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder that runs will be written to; nodes must see it.", show_default="here")
    ] = Path(),
    wait: Annotated[float, typer.Option(min=1, help="Minutes to wait for those jobs.")] = 15,
    json: Json = False,
) -> None:
    """Check that this machine has what runs need, and say what to do about what it lacks."""
    import dataclasses

    from jobs.doctor import run_checks
    from jobs.doctor_profile import check_profile, classes
    from slurm.profile_file import load_profile

    cluster = load_profile(profile) if profile else None
    checks = run_checks()
    if cluster is not None:
        for resources in classes(cluster):
            checks += check_profile(
                cluster, resources, folder, wait_s=60 * wait, report=lambda text: typer.echo(text, err=True)
            )
    if json:
        echo_json([dataclasses.asdict(check) for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            echo(f"{check.verdict:5}  {check.name:{width}}  {check.detail}")
            if check.advice:
                echo(f"{'':5}  {'':{width}}  -> {check.advice}")
    if any(check.verdict == "wrong" for check in checks):
        raise typer.Exit(1)

"""``sparsehpc doctor``."""

from __future__ import annotations

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json


@app.command()
def doctor(json: Json = False) -> None:
    """Check that this machine has what runs need, and say what to do about what it lacks."""
    import dataclasses

    from jobs.doctor import run_checks

    checks = run_checks()
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

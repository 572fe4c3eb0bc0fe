"""``sparsehpc densify DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json


@app.command()
def densify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Packed model.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New folder for the plain model.", show_default=False)],
    json: Json = False,
) -> None:
    """Write a packed model as plain safetensors with zeros in place, for any other tool."""
    from jobs.prune import densify as write_plain

    manifest = write_plain(folder, out, lambda text: typer.echo(text, err=True))
    if json:
        echo_json({"folder": str(out), "recipe": manifest["recipe"], "weights": manifest["weights"]})
    else:
        echo(f"plain model with zeros in place: {out}")

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
    smaller: Annotated[
        bool, typer.Option("--smaller", help="Leave out heads, neurons and layers that are zero.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a packed model as plain safetensors with zeros in place, for any other tool.

    With --smaller, what patterns heads, neurons and layers removed is left out: a smaller dense model that plain
    transformers opens.
    """
    from jobs.prune import densify as write_plain

    plain = write_plain(folder, out, lambda text: typer.echo(text, err=True), smaller=smaller)
    if json:
        echo_json(
            {
                "folder": str(out),
                "recipe": plain.manifest["recipe"],
                "weights": plain.manifest["weights"],
                "params": {"before": plain.params_before, "after": plain.params_after},
                "smaller": {key: {"before": old, "after": new} for key, (old, new) in plain.smaller.items()},
                "stayed": list(plain.stayed),
            }
        )
    elif smaller:
        numbers = {key: change for key, change in plain.smaller.items() if isinstance(change[0], int)}
        changes = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in numbers.items() if old != new)
        echo(f"smaller plain model: {out}")
        echo(f"{changes}; {plain.params_before:,} -> {plain.params_after:,} parameters")
        for reason in plain.stayed:
            echo(f"zeros stay: {reason}")
    else:
        echo(f"plain model with zeros in place: {out}")

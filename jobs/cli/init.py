"""``sparsehpc init FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import echo


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Study file to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented study file to start from."""
    from jobs.template import template
    from sparsehpc.core.errors import UserError
    from sparsehpc.core.files import write_text

    if file.exists() and (file.is_dir() or not force):
        raise UserError(f"{file} is already there", "choose another name, or --force to replace the file")
    try:
        write_text(file, template(file.stem))
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    echo(f"wrote {file}; next: sparsehpc plan {file}")

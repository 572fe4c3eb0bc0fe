"""``sparsehpc archive RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, Run, echo, echo_json


@app.command()
def archive(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="RUN.tar.gz")] = None,
    json: Json = False,
) -> None:
    """Pack study, plan, provenance, tables, figures and report into one file, before scratch is purged.

    Weights, shards and logs stay out, and so does everything that names you or this machine.
    """
    from jobs.archive import archive_run
    from jobs.folder import existing_run

    folder = existing_run(run.absolute())
    path = out if out is not None else folder.root.with_name(f"{folder.root.name}.tar.gz")
    names = archive_run(folder, path)
    if json:
        echo_json({"path": str(path), "files": len(names), "bytes": path.stat().st_size})
    else:
        echo(f"{path}: {len(names)} files, {path.stat().st_size / (1 << 20):.1f} MiB")

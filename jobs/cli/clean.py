"""``sparsehpc clean RUN``."""

from __future__ import annotations

import typer

from jobs.cli import app
from jobs.cli._cluster import Yes
from jobs.cli._output import Json, Run, echo, echo_json


@app.command()
def clean(run: Run, yes: Yes = False, json: Json = False) -> None:
    """Remove logs, scripts and payloads of submissions whose cells are all done, and leftovers of killed writers.

    Everything about cells that failed, wait or run stays, and so do shards, tables and report.
    """
    from jobs.folder import existing_run
    from jobs.manage import removable, remove

    found = removable(existing_run(run.absolute()))
    words = f"{found.files} files, {found.size_bytes / (1 << 20):.1f} MiB, of {len(found.folders)} submissions"
    if not json:
        echo(f"{words}; {found.kept} submissions are kept")
    gone = bool(found.paths) and (yes or typer.confirm("remove?", err=True))
    if gone:
        remove(found)
    if json:
        echo_json({"removed": gone, "files": found.files, "bytes": found.size_bytes, "kept": found.kept})

"""``sparsehpc status RUN``."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, Run, echo, echo_json, on_terminal, table

if TYPE_CHECKING:
    from jobs.status import Status


@app.command()
def status(
    run: Run,
    cells: Annotated[bool, typer.Option("--cells", help="List every cell.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="List the cells that failed or are damaged, with why.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and compare its digests.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every minute until nothing waits or runs.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what is done, on its way, failed (and why), damaged and missing, and what to do next.

    Files first; then squeue and sacct are asked at most once a minute, and what they cannot say is no error.
    """
    from jobs.folder import existing_run
    from jobs.status import run_status

    folder = existing_run(run)
    while True:
        found = run_status(folder, verify=verify)
        if json:
            echo_json(found.as_json(with_cells=cells or failed))
        else:
            if watch and on_terminal():
                echo("\033[2J\033[H")
            _show(found, run, cells=cells, failed=failed)
        counts = found.counts
        if not watch or not (counts["running"] or counts["queued"] or counts["unclear"]):
            return
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _show(found: Status, run: Path, *, cells: bool, failed: bool) -> None:
    counts = found.counts
    # Columns where there is nothing to see only make the line long.
    shown = [n for n, name in enumerate(found.headings) if name != "unclear" or counts["unclear"]]
    table([found.headings[n] for n in shown], [[row[n] for n in shown] for row in found.class_rows()])
    for problem in found.problems:
        echo(f"note: {problem}")
    failures = found.class_causes()
    for (resource, model), causes in failures.items():
        where = f" ({resource}, {model})" if len(found.class_rows()) > 2 else ""
        echo(f"failed{where}: " + ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items())))
    if used := found.usage():
        echo()
        headings = ("class", "jobs ended", "GiB asked", "GiB used", "minutes asked", "longest", "median", "next time")
        table(
            headings,
            [
                (*dataclasses.astuple(entry)[:3], entry.memory_used_gib or "-", *dataclasses.astuple(entry)[4:])
                for entry in used
            ],
        )
    if cells or failed:
        echo()
        table(("cell", "state", "what", "why"), found.cell_rows(only_failed=not cells))
    echo(f"next: {found.next_command(run)}")

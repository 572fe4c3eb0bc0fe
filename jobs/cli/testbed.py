"""``sparsehpc testbed up|down|status|exec``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json, table

if TYPE_CHECKING:
    from slurm.testbed import Testbed

group = typer.Typer(
    name="testbed",
    help="A private Slurm cluster on this machine: two CPU nodes, a GPU node, accounting.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(group)

Folder = Annotated[
    Path | None, typer.Option("--dir", help="Folder of the cluster; short, on a local disk.", show_default="in /tmp")
]


@group.command()
def up(
    folder: Folder = None,
    max_array_size: Annotated[int, typer.Option(min=2, help="Slurm's MaxArraySize.")] = 51,
    max_submit: Annotated[int, typer.Option(min=1, help="Jobs you may have in the queue.")] = 120,
    accounting: Annotated[bool, typer.Option(help="Start the accounting database, too.")] = True,
) -> None:
    """Start the cluster, in about ten seconds. Nothing outside its folder is touched; no root is needed."""
    from slurm.testbed.config import Options

    bed = _bed(folder)
    options = Options(max_array_size=max_array_size, max_submit=max_submit, accounting=accounting)
    bed.up(options)
    table(("part", "state"), bed.status().items())
    echo(f"\nin this shell:  export SLURM_CONF={bed.conf}")
    echo("then:           sparsehpc submit smoke --profile testbed")
    echo("to end it:      sparsehpc testbed down")


@group.command()
def down(folder: Folder = None) -> None:
    """Cancel its jobs, stop its daemons, remove its folder."""
    bed = _bed(folder)
    there = bed.folder.exists()
    bed.down()
    echo(f"{bed.folder} is gone" if there else f"there is no testbed in {bed.folder}")


@group.command()
def status(folder: Folder = None, json: Json = False) -> None:
    """Say which daemons run and in which state the nodes are."""
    bed = _bed(folder)
    found = bed.status() if bed.folder.exists() else {}
    if json:
        echo_json({"folder": str(bed.folder), "conf": str(bed.conf), "parts": found})
    elif found:
        table(("part", "state"), found.items())
        echo(f"SLURM_CONF={bed.conf}")
    else:
        echo("no testbed; sparsehpc testbed up starts one")
    if not found:
        raise typer.Exit(1)


@group.command(name="exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def execute(context: typer.Context, folder: Folder = None) -> None:
    """Run a command against the cluster: sparsehpc testbed exec -- sinfo."""
    import subprocess

    from sparsehpc.core.errors import UserError

    bed = _bed(folder)
    if not context.args:
        raise UserError("which command?", "sparsehpc testbed exec -- sinfo")
    if not bed.is_up():
        raise UserError(f"no testbed runs in {bed.folder}", "sparsehpc testbed up")
    try:
        answer = subprocess.run(context.args, env=bed.environment(), check=False)
    except OSError as error:
        raise UserError(f"{context.args[0]} cannot be run: {error.strerror}") from error
    raise typer.Exit(answer.returncode)


def _bed(folder: Path | None) -> Testbed:
    from slurm.testbed import Testbed, default_folder

    return Testbed(folder.absolute() if folder is not None else default_folder())

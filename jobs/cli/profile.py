"""``sparsehpc profile probe|list|show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json, table

group = typer.Typer(
    name="profile",
    help="Cluster profiles: what a cluster wants to be asked, one file each.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(group)


@group.command()
def probe(
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the profile.", show_default="the cluster's name")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write.", show_default="in your config folder")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: Json = False,
) -> None:
    """Ask the cluster this machine belongs to, and write a commented profile."""
    import dataclasses
    import datetime

    from slurm import probe as probing
    from slurm.profile_file import parse_profile, user_folder
    from sparsehpc.core.errors import UserError
    from sparsehpc.core.files import write_text

    cluster = probing.probe()
    text = probing.profile_text(cluster, f"{datetime.date.today():%Y-%m-%d}")
    stem = name or "".join(c if c.isalnum() or c in "._-" else "-" for c in cluster.name)
    path = out if out is not None else user_folder() / f"{stem}.toml"
    parse_profile(text, name=path.stem, where=str(path))  # also refuses a name that is no name
    if path.exists() and not force:
        raise UserError(f"{path} is there already", "--force replaces it, --name or --out chooses another")
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "choose another place with --out") from error
    if json:
        echo_json({"path": str(path), "cluster": dataclasses.asdict(cluster)})
        return
    typer.echo(text, nl=False)
    for part in cluster.partitions:
        if part.threads_per_core > 1:
            typer.echo(
                f"note: a CPU of partition {part.name} is one of {part.threads_per_core} threads of a core; "
                'extra = { hint = "nomultithread" } in the profile asks for whole cores',
                err=True,
            )
    echo(f"\nwritten to {path}")
    echo(f"next: sparsehpc doctor --profile {path if out else path.stem}")


@group.command(name="list")
def list_profiles(json: Json = False) -> None:
    """Name the profiles that can be used: your own and the shipped ones."""
    from slurm.profile_file import load_profile, names, user_folder

    rows = [
        (name, "yours" if (user_folder() / f"{name}.toml").is_file() else "shipped", load_profile(name).description)
        for name in names()
    ]
    if json:
        echo_json([dict(zip(("name", "origin", "description"), row, strict=True)) for row in rows])
    else:
        table(("name", "origin", "what"), rows)


@group.command()
def show(profile: Annotated[str, typer.Argument(help="Name or file.")]) -> None:
    """Check a profile and print it whole, defaults included."""
    from slurm.profile_file import load_profile

    found = load_profile(profile)
    # A class holds what was written for it: everything else is that of "job".
    own = {name: job.model_dump(exclude_unset=True) for name, job in found.classes.items()}
    echo_json({**found.model_dump(exclude={"classes"}), "class": own})

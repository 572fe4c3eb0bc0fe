"""``sparsehpc prepare MODEL...``."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, echo, echo_json


@app.command()
def prepare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Models, corpora, or study files (all they need).", show_default=False),
    ],
    revision: Annotated[str | None, typer.Option(help="Commit or branch of a hub model.")] = None,
    json: Json = False,
) -> None:
    """Fetch and convert models and corpora, where there is internet, so that runs need none."""
    from jobs.prepare import prepare_names

    prepared = prepare_names(names, revision, lambda text: typer.echo(text, err=True))
    if json:
        echo_json(prepared)
    else:
        for entry in prepared:
            echo(f"{entry['kind']} {entry['name']}: {entry['where']}")

"""The command line: one file a verb. Heavy imports stand inside the handlers, so that ``--help`` answers at once."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer

from sparsehpc.core.errors import UserError

app = typer.Typer(
    name="sparsehpc",
    help="What sparsity really does to a transformer language model: what it breaks, what it saves, what it speeds up.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Exit status of a user's mistake; of a run that ended with failed cells it is 1.
USER_ERROR = 2


def _add_verbs() -> None:
    """Every module of this package whose name does not start with ``_`` adds itself to `app`."""
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        if not info.name.startswith("_"):
            importlib.import_module(f"{__name__}.{info.name}")


def main() -> None:
    """Run the command line; a user's mistake is shown without a traceback."""
    _add_verbs()
    try:
        app(prog_name="sparsehpc")
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(USER_ERROR)
    except BrokenPipeError:
        # The reader (head, less) has gone; what it did not read is not wanted.
        sys.stderr.close()
        sys.exit(0)

"""``sparsehpc bench SUITE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import echo, table


@app.command()
def bench(
    suite: Annotated[str, typer.Argument(help="Suite; without one, all are listed.")] = "",
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the rows here.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown; without a suite, that of the file of --json.")
    ] = False,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the suite; may be repeated.")
    ] = None,
) -> None:
    """Measure how fast something is, both sides in one run."""
    from jobs.bench import REQUIRED, read_results, results, run_suite, suites, write_results
    from jobs.bench._markdown import as_markdown
    from sparsehpc.core.errors import UserError

    if not suite:
        if markdown and json is not None:
            echo(as_markdown([read_results(json)]))
            return
        table(("suite", "what"), suites().items())
        return
    pairs = [option.partition("=") for option in options or []]
    if wrong := [key for key, equals, _ in pairs if not (key and equals)]:
        raise UserError(f"--set {wrong[0]!r} is no KEY=VALUE")
    rows = run_suite(suite, {key: value for key, _, value in pairs})
    if json is not None:
        write_results(json, suite, rows)
    if markdown:
        echo(as_markdown([results(suite, rows)]))
        return
    headings = [*REQUIRED, *dict.fromkeys(key for row in rows for key in row if key not in REQUIRED)]
    table(headings, [[_shown(row.get(key, "")) for key in headings] for row in rows])
    if json is not None:
        echo(f"rows: {json}")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""``sparsehpc validate RUN``."""

from __future__ import annotations

import dataclasses
import textwrap

import typer

from jobs.cli import app
from jobs.cli._output import Json, Run, echo, echo_json, table


@app.command()
def validate(run: Run, json: Json = False) -> None:
    """Compare a run's perplexities with published ones; ends with status 1 where one differs.

    The run must follow the papers' protocol, as the study ``published`` does, and be aggregated.
    """
    import pyarrow.parquet as pq

    from aggregate.tables import read_table
    from jobs.folder import existing_run
    from jobs.published import DIFFERENCES, DIFFERS, check_protocol, verdicts

    folder = existing_run(run)
    check_protocol(pq.read_table(folder.plan).to_pylist())
    rows = read_table(folder, "global")
    found = verdicts([row for row in rows.to_pylist() if row["convention"] == "unique"])
    if json:
        echo_json([dataclasses.asdict(verdict) for verdict in found])
    else:
        table(
            ("cell", "perplexity", "published", "tolerance", "verdict", "source"),
            (
                (
                    verdict.label,
                    f"{verdict.perplexity:.2f}",
                    "-" if verdict.published is None else f"{verdict.published.perplexity:.2f}",
                    "" if verdict.published is None else f"{verdict.published.tolerance:.0%}",
                    verdict.verdict,
                    "" if verdict.published is None else verdict.published.source,
                )
                for verdict in found
            ),
        )
        echo(f"\n{textwrap.fill(DIFFERENCES, 100)}")
    raise typer.Exit(any(verdict.verdict == DIFFERS for verdict in found))

"""``sparsehpc plan STUDY``."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli import app
from jobs.cli._output import Json, StudyName, echo, echo_json, table


@app.command()
def plan(
    study: StudyName,
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="Cluster to price it for.", show_default="generic-cpu")
    ] = "generic-cpu",
    cells: Annotated[bool, typer.Option("--cells", help="List every cell.")] = False,
    json: Json = False,
) -> None:
    """Show which cells a study has, which it cannot have and why, and what they would cost on a cluster.

    Computes nothing and loads no torch.
    """
    from jobs.plan import make_plan
    from jobs.propose import TOTALS, class_totals, price_warnings, whole_price
    from jobs.study import find_study, load_study
    from jobs.summary import class_rows, dropped_rows, memory_warnings, pattern_notes, plan_summary
    from slurm.profile_file import load_profile
    from sparsehpc.core.keys import key_row

    cluster = load_profile(profile)
    made = make_plan(load_study(find_study(study)))
    arrays = whole_price(made, cluster)
    price, warnings = class_totals(arrays), price_warnings(arrays, cluster)
    if json:
        summary = plan_summary(made)
        summary["price"] = [dict(zip(TOTALS, row, strict=True)) for row in price]
        summary["warnings"] = [*memory_warnings(made), *warnings]
        if cells:
            summary["cells"] = [key_row(cell) for cell in made.cells]
        echo_json(summary)
        return
    models = len(made.study.models)
    echo(f"{made.study.name}: {len(made.cells)} cells of {models} model{'s' if models > 1 else ''}")
    table(
        ("class", "device", "model", "dtype", "cells", "cpus", "GiB", "expected GiB", "GPUs", "minutes"),
        class_rows(made),
    )
    echo()
    echo(f"as jobs of profile {cluster.name}; hours are estimated, 'at most' is what the wall times allow")
    echo("(submit --dry-run prints the exact scripts):")
    table(TOTALS, price)
    for note in pattern_notes(made):
        echo(f"note: {note}")
    for warning in (*memory_warnings(made), *warnings):
        echo(f"warning: {warning}")
    if made.dropped:
        echo()
        echo("left out:")
        table(("model", "method", "pattern", "variant", "cells", "reason"), dropped_rows(made))
    if cells:
        echo()
        table(("cell", "what"), [(cell.cell_id, cell.label()) for cell in made.cells])

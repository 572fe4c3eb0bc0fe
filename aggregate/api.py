"""Aggregate a run: what other packages call."""

from __future__ import annotations

from typing import Any

from aggregate import scan as scanning
from aggregate.compact import compact_run
from aggregate.latency import latency_table
from aggregate.reduce import SHARDS_PER_TASK, reduce_shards
from aggregate.scan import Coverage
from aggregate.tables import build_tables, write_tables
from sparsehpc.core.layout import RunFolder


def aggregate_run(
    run: RunFolder,
    *,
    shards_per_task: int = SHARDS_PER_TASK,
    scheduler: Any = "threads",
    figures: bool = True,
    compact: bool = False,
) -> Coverage:
    """Read every shard of a run and write its tables and figures; a partial run gives what it has.

    Idempotent: deleting ``tables`` and ``figures`` loses nothing.

    Parameters
    ----------
    run
        The run folder.
    shards_per_task
        Whole shards per Dask task.
    scheduler
        What ``dask.compute`` shall use.
    figures
        Also draw the figures.
    compact
        Pack the shards first (`aggregate.compact`): worth it for thousands of cells that are read more than once.

    Returns
    -------
    Coverage
        Planned cells and the state of each, after their figures were read.
    """
    if compact:
        compact_run(run)
    coverage = scanning.scan(run, packs=True)
    parts = {}
    for kind in ("behaviour", "latency"):
        part, places = coverage.of_kind(kind)
        positions = scanning.done_positions(part)
        rows = [row for row in part.rows if row is not None]
        reduced = reduce_shards(
            run, positions, rows, shards_per_task=shards_per_task, scheduler=scheduler, packs=coverage.packs
        )
        parts[kind] = part.with_damage(dict(reduced.damage)), reduced
        coverage = coverage.with_damage({places[position]: why for position, why in reduced.damage.items()})
    tables = build_tables(*parts["behaviour"])
    timed = latency_table(*parts["latency"], tables["global"])
    write_tables(run, tables | {"coverage": coverage.table()} | ({} if timed is None else {"latency": timed}))
    if figures:
        from aggregate.figures import draw_figures

        draw_figures(run)
    return coverage

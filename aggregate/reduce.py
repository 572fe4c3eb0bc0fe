"""Chunk, combine: the measurements of many shards, reduced by Dask to one row per cell and subject.

A task reads whole shards, so a cell's rows never meet those of another task, and adds them up in an order that
does not depend on how they lie in the file (`aggregate.pivot`). Any partitioning therefore gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import pyarrow as pa

from aggregate.pivot import INDEX, SCOPES, Kind, kinds_of, pivot
from aggregate.scan import relative_reason
from sparsehpc.core import shards
from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.layout import RunFolder

#: Shards a task reads: enough that Dask's own work does not show, few enough for memory (some 5,000 rows each).
SHARDS_PER_TASK = 100

#: What `shards.read_measurements` needs of a cell's row; the rest does not travel to the task.
_READING = ("cell_id", "measurements_rows", "measurements_sha256")


@dataclass(frozen=True, slots=True)
class Reduced:
    """Figures of all cells that could be read.

    Parameters
    ----------
    wide
        One table per scope: ``position`` (in the plan), ``subject``, ``layer``, ``group``, ``convention`` and a
        column per metric (and component).
    kinds
        Reduction and unit by metric.
    damage
        Positions whose measurements could not be trusted, and why.
    """

    wide: Mapping[str, pa.Table]
    kinds: Mapping[str, Kind]
    damage: Mapping[int, str]


def reduce_shards(
    run: RunFolder,
    positions: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    *,
    shards_per_task: int = SHARDS_PER_TASK,
    scheduler: Any = "threads",
) -> Reduced:
    """Read the shards of the given cells and reduce them.

    Parameters
    ----------
    run
        The run folder.
    positions
        Positions of the cells in the plan, ascending.
    rows
        The cells' rows, one per position.
    shards_per_task
        Whole shards per Dask task; changes speed and memory, never the result.
    scheduler
        Anything ``dask.compute`` takes: ``threads``, ``synchronous``, or a distributed client's ``get``.

    Raises
    ------
    SparseHPCError
        Where one metric combines in two ways.
    """
    cells = [(position, {name: row[name] for name in _READING}) for position, row in zip(positions, rows, strict=True)]
    tasks = [
        dask.delayed(chunk, pure=False)(run, cells[start : start + shards_per_task])
        for start in range(0, len(cells), shards_per_task)
    ]
    return combine(dask.compute(*tasks, scheduler=scheduler) if tasks else ())


def chunk(run: RunFolder, cells: Sequence[tuple[int, Mapping[str, Any]]]) -> Reduced:
    """Read the shards of one task and reduce them; a damaged one is named, never counted."""
    tables: list[pa.Table] = []
    damage: dict[int, str] = {}
    for position, row in cells:
        try:
            table = shards.read_measurements(run.cell(str(row["cell_id"])), row)
        except (shards.ShardError, OSError) as error:
            damage[position] = relative_reason(run, str(error))
            continue
        tables.append(table.set_column(0, "position", pa.repeat(pa.scalar(position, pa.int64()), table.num_rows)))
    if not tables:
        return Reduced({}, {}, damage)
    table = pa.concat_tables(tables)
    kinds = kinds_of(table)
    return Reduced(pivot(table, kinds), kinds, damage)


def combine(parts: Sequence[Reduced]) -> Reduced:
    """Join parts in plan order; a metric that combines in two ways is an error."""
    kinds: dict[str, Kind] = {}
    damage: dict[int, str] = {}
    for part in parts:
        for name, kind in part.kinds.items():
            if kinds.setdefault(name, kind) != kind:
                raise SparseHPCError(
                    f"metric {name!r} combines in two ways in one run: as {kinds[name]} and as {kind}; "
                    f"its shards come from different code and cannot be joined"
                )
        damage.update(part.damage)
    wide = {}
    for scope in SCOPES:
        found = [part.wide[scope] for part in parts if scope in part.wide]
        if found:
            # Metrics differ between cells: a column that a part lacks is null there.
            table = pa.concat_tables(found, promote_options="default")
            wide[scope] = table.select([*INDEX, *sorted(set(table.column_names) - set(INDEX))])
    return Reduced(wide, dict(sorted(kinds.items())), damage)

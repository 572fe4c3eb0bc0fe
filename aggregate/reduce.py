"""Chunk, combine: the measurements of many shards, reduced by Dask to one row per cell and subject.

A task reads whole shards, so a cell's rows never meet those of another task, and adds them up in an order that
does not depend on how they lie in the file (`aggregate.pivot`). Any partitioning therefore gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.local
import dask.threaded
import pyarrow as pa

from aggregate.compact import Pack, read_pack
from aggregate.pivot import SCOPES, Kind, join
from aggregate.reading import Numbers, read_cell
from aggregate.scan import relative_reason
from sparsehpc.core import shards
from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.layout import RunFolder

#: Shards a task reads: enough that Dask's own work does not show, few enough for memory (some 5,000 rows each).
SHARDS_PER_TASK = 100

#: What `shards.read_measurements` needs of a cell's row; the rest does not travel to the task.
_READING = ("cell_id", "measurements_rows", "measurements_sha256")

#: Dask looks a name up by importing the whole of distributed; these two need none of it.
_HERE = {"threads": dask.threaded.get, "synchronous": dask.local.get_sync}


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
    scopes: Sequence[str] = SCOPES,
    packs: Sequence[Pack] = (),
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
    scopes
        Scopes that are wanted.
    packs
        Packs that hold some of the cells: a task reads one of them.

    Raises
    ------
    SparseHPCError
        Where one metric combines in two ways.
    """
    cells = [(position, {name: row[name] for name in _READING}) for position, row in zip(positions, rows, strict=True)]
    known = {str(row["cell_id"]): (position, row) for position, row in cells}
    tasks = []
    for pack in packs:
        packed = [known.pop(str(row["cell_id"])) for row in pack.rows if row["cell_id"] in known]
        if packed:
            tasks.append(_task(pack_chunk, run, packed, tuple(scopes), pack.path, pack.sha256))
    left = list(known.values())
    tasks += [
        _task(chunk, run, left[start : start + shards_per_task], tuple(scopes))
        for start in range(0, len(left), shards_per_task)
    ]
    return combine(dask.compute(*tasks, scheduler=_HERE.get(scheduler, scheduler)) if tasks else ())


def _task(work: Callable[..., Reduced], *arguments: Any) -> Any:
    """A Dask task whose arguments are bound before: Dask would look through every row of them for tasks of its own."""
    return dask.delayed(partial(work, *arguments), pure=False)()


def chunk(run: RunFolder, cells: Sequence[tuple[int, Mapping[str, Any]]], scopes: Sequence[str] = SCOPES) -> Reduced:
    """Read the shards of one task and reduce them; a damaged one is named, never counted."""
    found: list[tuple[int, Numbers]] = []
    damage: dict[int, str] = {}
    for position, row in cells:
        try:
            found.append((position, read_cell(run.cell(str(row["cell_id"])), row, scopes)))
        except (shards.ShardError, OSError) as error:
            damage[position] = relative_reason(run, str(error))
    return _reduced(found, damage)


def pack_chunk(
    run: RunFolder, cells: Sequence[tuple[int, Mapping[str, Any]]], scopes: Sequence[str], path: Path, sha256: str
) -> Reduced:
    """Reduce the cells of one pack; where it cannot be trusted, their shards are read instead."""
    try:
        packed = read_pack(path, sha256, scopes)
    except shards.ShardError:
        return chunk(run, cells, scopes)
    return _reduced([(position, packed[str(row["cell_id"])]) for position, row in cells], {})


def combine(parts: Sequence[Reduced]) -> Reduced:
    """Join parts; a metric that combines in two ways is an error."""
    kinds: dict[str, Kind] = {}
    damage: dict[int, str] = {}
    for part in parts:
        _same_kinds(kinds, part.kinds)
        damage.update(part.damage)
    wide = {}
    for scope in SCOPES:
        if tables := [part.wide[scope] for part in parts if scope in part.wide]:
            wide[scope] = join(tables)
    return Reduced(wide, dict(sorted(kinds.items())), damage)


def _reduced(found: Sequence[tuple[int, Numbers]], damage: Mapping[int, str]) -> Reduced:
    """Pass the numbers of each cell through its arrangement; cells of one arrangement make one table."""
    kinds: dict[str, Kind] = {}
    arranged: dict[int, list[tuple[int, Numbers]]] = {}
    for position, numbers in found:
        arranged.setdefault(id(numbers.pivot), []).append((position, numbers))
    tables: dict[str, list[pa.Table]] = {}
    for same in arranged.values():
        pivot = same[0][1].pivot
        _same_kinds(kinds, pivot.kinds)
        positions = [position for position, _ in same]
        parts = pivot.tables(positions, [n.numerator for _, n in same], [n.denominator for _, n in same])
        for scope, table in parts:
            tables.setdefault(scope, []).append(table)
    return Reduced({scope: join(parts) for scope, parts in tables.items()}, kinds, damage)


def _same_kinds(known: dict[str, Kind], more: Mapping[str, Kind]) -> None:
    for name, kind in more.items():
        if known.setdefault(name, kind) != kind:
            raise SparseHPCError(
                f"metric {name!r} combines in two ways in one run: as {known[name]} and as {kind}; "
                f"its shards come from different code and cannot be joined"
            )

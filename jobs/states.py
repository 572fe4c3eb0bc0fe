"""State of every planned cell, fast enough to ask often: two looks at a file's ends instead of reading it.

A truncated, empty or replaced shard is seen here; a flipped bit only by reading it all, which `aggregate` does. What
that found damaged stays damaged here until the shard is written anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

from sparsehpc.core.layout import CellFolder, RunFolder
from sparsehpc.core.shards import ShardState, shard_state

_MAGIC = b"PAR1"
_LOOKERS = 8


def cell_states(run: RunFolder, cell_ids: Sequence[str], *, verify: bool = False) -> dict[str, ShardState]:
    """State of each cell from its files.

    Parameters
    ----------
    run
        The run folder.
    cell_ids
        Which cells.
    verify
        Read every shard and compare its digests.
    """
    if verify:
        with ThreadPoolExecutor(_LOOKERS) as pool:
            looked = pool.map(lambda cell_id: shard_state(run.cell(cell_id), cell_id), cell_ids, chunksize=64)
            return dict(zip(cell_ids, looked, strict=True))
    present, closed = _present(run, cell_ids)
    damaged = _found_damaged(run)
    states = {}
    for cell_id in cell_ids:
        if cell_id not in present:
            why = closed.get(cell_id[:2])
            states[cell_id] = ShardState("damaged", why) if why else ShardState("missing")
            continue
        folder = run.cell(cell_id)
        found = _glance(folder, cell_id)
        if found.state == "done" and cell_id in damaged and _older(folder, damaged[cell_id][0]):
            found = ShardState("damaged", damaged[cell_id][1])
        states[cell_id] = found
    return states


def _present(run: RunFolder, cell_ids: Iterable[str]) -> tuple[set[str], dict[str, str]]:
    """Cells that have a folder, by one listing a fan-out folder, and the fan-out folders that cannot be read, with why.

    What another member of the group has closed to others is not missing.
    """
    found: set[str] = set()
    closed: dict[str, str] = {}
    for beginning in {cell_id[:2] for cell_id in cell_ids}:
        folder = run.cells / beginning
        try:
            found.update(path.name for path in folder.iterdir())
        except FileNotFoundError:
            continue
        except OSError as error:
            closed[beginning] = f"{folder} cannot be read: {error.strerror}; its owner can open it: chmod -R g+rX"
    return found, closed


def _glance(folder: CellFolder, cell_id: str) -> ShardState:
    try:
        if not _has_ends(folder.row):
            return ShardState("damaged", f"{folder.row.name} is cut off")
    except OSError:
        return shard_state(folder, cell_id, verify=False)
    try:
        if not _has_ends(folder.measurements):
            return ShardState("damaged", f"{folder.measurements.name} is cut off")
    except OSError as error:
        return ShardState("damaged", f"{folder.measurements.name} cannot be read: {error.strerror}")
    return ShardState("done")


def _has_ends(path: Path) -> bool:
    """Whether a file begins and ends as Parquet does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return size > 12 and os.pread(descriptor, 4, 0) == _MAGIC == os.pread(descriptor, 4, size - 4)
    finally:
        os.close(descriptor)


def _found_damaged(run: RunFolder) -> dict[str, tuple[float, str]]:
    """Cells that the last aggregation found damaged: when, and why."""
    path = run.tables / "coverage.parquet"
    try:
        table = pq.read_table(path, columns=["cell_id", "state", "reason"], filters=[("state", "=", "damaged")])
        when = path.stat().st_mtime
    except (OSError, ValueError, KeyError):
        return {}
    rows = zip(table["cell_id"].to_pylist(), table["reason"].to_pylist(), strict=True)
    return {cell_id: (when, reason) for cell_id, reason in rows}


def _older(folder: CellFolder, when: float) -> bool:
    try:
        return folder.row.stat().st_mtime <= when
    except OSError:
        return False

"""``plan.parquet``: written once a run, read by everything that asks which cells should exist."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparsehpc.core import schema
from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_atomically
from sparsehpc.core.keys import key_row
from sparsehpc.core.spec import Cell

_ROWS_PER_GROUP = 10_000


def write_plan(path: Path, cells: Sequence[Cell]) -> None:
    """Write cells in their order, in batches, so that memory does not grow with the plan."""

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema.PLAN, compression="zstd") as writer:
            for start in range(0, max(len(cells), 1), _ROWS_PER_GROUP):
                writer.write_table(_table(cells[start : start + _ROWS_PER_GROUP], start))

    write_atomically(path, write)


def read_plan(path: Path, cell_ids: Collection[str] | None = None) -> list[Cell]:
    """Cells of a plan in their order.

    Parameters
    ----------
    path
        ``plan.parquet``.
    cell_ids
        Read only these.

    Raises
    ------
    UserError
        The file is missing or damaged, was written by another version, or lacks one of ``cell_ids``.
    """
    table = _read(path, ["cell_id", "spec"], None if cell_ids is None else list(cell_ids))
    cells = []
    for cell_id, spec in zip(table["cell_id"].to_pylist(), table["spec"].to_pylist(), strict=True):
        try:
            cell = Cell.from_json(spec)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: cell {cell_id} cannot be read: {error}") from error
        if cell.cell_id != cell_id:
            raise UserError(
                f"{path}: cell {cell_id} has another identity in this version of sparsehpc ({cell.cell_id})",
                "go on with the version that made the run, or make a new run folder with --out",
            )
        cells.append(cell)
    if cell_ids is not None and (missing := set(cell_ids) - {cell.cell_id for cell in cells}):
        raise UserError(
            f"{path} holds no cell {', '.join(sorted(missing)[:3])}", "sparsehpc status RUN --cells lists them"
        )
    return cells


def find_cell(path: Path, beginning: str) -> Cell:
    """The one cell of a plan whose id begins so; `UserError` where there is none or several."""
    found = [cell_id for cell_id in planned_ids(path) if beginning and cell_id.startswith(beginning)]
    if len(found) != 1:
        count = "no cell" if not found else f"{len(found)} cells"
        raise UserError(
            f"{count} of {path.parent} begin{'s' * (not found)} with {beginning!r}",
            f"sparsehpc status {path.parent} --cells lists them",
        )
    return read_plan(path, found)[0]


def planned_ids(path: Path, *, behaviour_only: bool = False) -> list[str]:
    """Ids of a plan in their order; with ``behaviour_only`` without the cells that are timed."""
    table = _read(path, ["cell_id", "kind"] if behaviour_only else ["cell_id"], None)
    if "kind" in table.column_names:  # older plans have no such column, and no cell that is timed
        table = table.filter(pc.not_equal(pc.fill_null(table["kind"], "behaviour"), "latency"))
    ids: list[str] = table["cell_id"].to_pylist()
    return ids


def _read(path: Path, columns: list[str], cell_ids: list[str] | None) -> pa.Table:
    try:
        # Read as one buffer: a memory-mapped file on a network file system can raise SIGBUS.
        file = pq.ParquetFile(pa.BufferReader(path.read_bytes()))
        try:
            schema.conform(file.schema_arrow.empty_table(), schema.PLAN)
        except ValueError as error:
            raise UserError(
                f"{path} is no plan of this version of sparsehpc: {error}",
                "go on with the version that made the run, or make a new run folder with --out",
            ) from error
        table = file.read(columns=columns)
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} is no run folder: it has no {path.name}", "sparsehpc run STUDY makes one"
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if cell_ids is None:
        return table
    return table.filter(pc.is_in(table["cell_id"], value_set=pa.array(cell_ids, pa.string())))


def _table(cells: Iterable[Cell], start: int) -> pa.Table:
    rows = [
        {"order": start + n, **key_row(cell), "kind": cell.kind, "spec": cell.to_json()} for n, cell in enumerate(cells)
    ]
    return pa.Table.from_pylist(rows, schema=schema.PLAN)

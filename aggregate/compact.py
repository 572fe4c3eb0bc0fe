"""Packs: the shards of many cells in two files, so that aggregating again reads hundreds of files, not ten thousands.

A pack is a cache beside the shards, never instead of them: deleting ``compact/`` loses nothing. It holds cells whose
digests were checked when it was made, and it counts only while the size and time of every file it was made from are
what they were. Every cell is a row group: equal text is found by its bytes there as in a shard (`aggregate.reading`).

Two files a pack, the second is the commit mark and holds the digest of the first::

    compact/<digest>.measurements.parquet   compact/<digest>.cells.parquet
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aggregate.reading import Numbers, pivot_of
from sparsehpc.core import schema, shards
from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_atomically
from sparsehpc.core.layout import CellFolder, RunFolder

#: Cells in a pack: as many as a task reads.
CELLS_PER_PACK = 100

_FOLDER = "compact"
_FIGURES, _CELLS = ".measurements.parquet", ".cells.parquet"
_DIGEST = b"sparsehpc.pack_sha256"
_IDS = b"sparsehpc.cell_ids"
_VERSION = b"sparsehpc.schema_version"

#: Size and time of both files of a cell when it was packed.
_STAMPS = ("row_size", "row_mtime_ns", "measurements_size", "measurements_mtime_ns")
_LOOKERS = 8


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that counts.

    Parameters
    ----------
    path
        File of the figures.
    sha256
        Its digest.
    rows
        Rows of its cells (`schema.CELL`).
    """

    path: Path
    sha256: str
    rows: tuple[dict[str, Any], ...]


def load_packs(run: RunFolder) -> list[Pack]:
    """Packs of a run whose cells are as they were when it was made; others are passed over."""
    packs = []
    for mark in sorted((run.root / _FOLDER).glob(f"*{_CELLS}")):
        pack = _load(run, mark)
        if pack is not None:
            packs.append(pack)
    return packs


def read_pack(path: Path, sha256: str, scopes: Collection[str]) -> dict[str, Numbers]:
    """Figures of the cells of a pack, by cell id; `ShardError` where they cannot be trusted."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise shards.ShardError(f"{path} does not match its digest")
        file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=["cell_id"])
        table = file.read(columns=["numerator", "denominator"], use_threads=False)
        numerator, denominator = table["numerator"].to_numpy(), table["denominator"].to_numpy()
        found, start = {}, 0
        for group, cell in enumerate((file.schema_arrow.metadata or {})[_IDS].decode().split()):
            end = start + file.metadata.row_group(group).num_rows
            pivot = pivot_of(file, content, group, scopes)
            found[cell] = Numbers(pivot, numerator[start:end], denominator[start:end])
            start = end
    except (OSError, pa.ArrowException, KeyError) as error:
        raise shards.ShardError(f"{path} cannot be read: {error}") from error
    return found


def compact_run(run: RunFolder, *, cells_per_pack: int = CELLS_PER_PACK) -> int:
    """Pack every cell that is done and in no pack yet; packs that no longer count are removed.

    Doing it twice does nothing the second time. A crash leaves whole packs and at most one file without its mark,
    which the next call removes.

    Returns
    -------
    int
        Cells that were packed now.
    """
    from aggregate.scan import done_positions, scan

    folder = run.root / _FOLDER
    packs = load_packs(run)
    known = {pack.path.name.removesuffix(_FIGURES) for pack in packs}
    try:
        for path in folder.glob("*.parquet"):
            if path.name.removesuffix(_FIGURES).removesuffix(_CELLS) not in known:
                path.unlink()
        coverage = scan(run)
        packed = {row["cell_id"] for pack in packs for row in pack.rows}
        rows = [coverage.rows[position] for position in done_positions(coverage)]
        left = [row for row in rows if row is not None and row["cell_id"] not in packed]
        return sum(_write(run, left[start : start + cells_per_pack]) for start in range(0, len(left), cells_per_pack))
    except OSError as error:
        raise UserError(f"packs cannot be written to {folder}: {error}", "aggregate without --compact") from error


def _write(run: RunFolder, rows: Sequence[dict[str, Any]]) -> int:
    tables, kept, stamps = [], [], []
    for row in rows:
        folder = run.cell(str(row["cell_id"]))
        with suppress(shards.ShardError, OSError):
            # The stamp first: a shard that is replaced while it is read leaves a pack that does not count.
            stamp = _stamp(folder)
            table = shards.read_measurements(folder, row)
            if table.num_rows:
                tables.append(table)
                kept.append(row)
                stamps.append(stamp)
    if not kept:
        return 0
    name = hashlib.sha256("".join(row["row_sha256"] for row in kept).encode()).hexdigest()[:20]
    path = run.root / _FOLDER / f"{name}{_FIGURES}"
    write_atomically(path, lambda temporary: _write_figures(tables, [str(row["cell_id"]) for row in kept], temporary))
    marks = pa.Table.from_pylist(kept, schema=schema.CELL)
    for number, stamp_name in enumerate(_STAMPS):
        marks = marks.append_column(stamp_name, pa.array([stamp[number] for stamp in stamps], pa.int64()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    marks = marks.replace_schema_metadata({**(schema.CELL.metadata or {}), _DIGEST: digest.encode()})
    write_atomically(path.with_name(f"{name}{_CELLS}"), lambda temporary: pq.write_table(marks, temporary))
    return len(kept)


def _write_figures(tables: Sequence[pa.Table], cells: Sequence[str], path: Path) -> None:
    stamped = tables[0].schema.with_metadata({**(schema.MEASUREMENTS.metadata or {}), _IDS: " ".join(cells).encode()})
    with pq.ParquetWriter(path, stamped, **shards.FIGURES_ON_DISK) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=table.num_rows)


def _load(run: RunFolder, mark: Path) -> Pack | None:
    try:
        table = pq.ParquetFile(pa.BufferReader(mark.read_bytes())).read(use_threads=False)
        metadata = table.schema.metadata or {}
        rows = table.select(schema.CELL.names).to_pylist()
        stamps = list(zip(*(table[name].to_pylist() for name in _STAMPS), strict=True))
    except (OSError, pa.ArrowException, KeyError):
        return None
    path = mark.with_name(mark.name.removesuffix(_CELLS) + _FIGURES)
    if metadata.get(_VERSION, b"").decode() != str(schema.SCHEMA_VERSION) or not path.is_file():
        return None
    with ThreadPoolExecutor(_LOOKERS) as pool:
        now: Iterator[tuple[int, ...] | None] = pool.map(lambda row: _now(run, row), rows)
        if any(found != stamp for found, stamp in zip(now, stamps, strict=True)):
            return None
    return Pack(path, metadata.get(_DIGEST, b"").decode(), tuple(rows))


def _now(run: RunFolder, row: dict[str, Any]) -> tuple[int, ...] | None:
    try:
        return _stamp(run.cell(str(row["cell_id"])))
    except OSError:
        return None


def _stamp(folder: CellFolder) -> tuple[int, ...]:
    row, figures = folder.row.stat(), folder.measurements.stat()
    return (row.st_size, row.st_mtime_ns, figures.st_size, figures.st_mtime_ns)

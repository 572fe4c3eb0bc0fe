"""A cell's shard: two Parquet files, the second is the commit mark; whole or not there.

``measurements.parquet`` is written first, ``cell.parquet`` last. The row holds the digest of the measurements
and of itself, so that a truncated or bit-flipped shard is recognised as damaged, and never counted.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sparsehpc.core import schema
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.core.files import sha256_file, write_atomically, write_text
from sparsehpc.core.layout import CellFolder
from sparsehpc.core.schema import Measurement

State = Literal["done", "failed", "damaged", "missing"]

#: What columns mean stands in the documentation, not once more in every one of ten thousand files.
_ROW_ON_DISK = pa.schema([field.remove_metadata() for field in schema.CELL], metadata=schema.CELL.metadata)

#: Key in the file's metadata that holds the row once more as JSON: it is found and checked without parsing fifty
#: columns of one value each, which costs readers of ten thousand cells more than anything else.
_ROW_KEY = "sparsehpc.row"
_ROW_HEAD = "version={} columns={} row={} bytes={} "
_ROW_FOUND = re.compile(rb"sparsehpc\.row[^v]{1,9}version=(\d+) columns=([0-9a-f]{64}) row=([0-9a-f]{64}) bytes=(\d+) ")

#: Length of the footer and the magic word: how a Parquet file ends.
_FILE_END_BYTES = 8

_CODED = [field.name for field in schema.MEASUREMENTS if not pa.types.is_floating(field.type)]

#: How figures are stored: equal text once, numbers as they are and in a codec that is fast to read, because of every
#: cell only the numbers are decoded (`aggregate.reading`).
FIGURES_ON_DISK: Final[dict[str, Any]] = {
    "compression": {name: "zstd" if name in _CODED else "lz4" for name in schema.MEASUREMENTS.names},
    "use_dictionary": _CODED,
    "write_statistics": False,
}


class ShardError(SparseHPCError):
    """A shard that is there but cannot be trusted."""


class ShardState(NamedTuple):
    """What is known about one cell from its files.

    Parameters
    ----------
    state
        ``done``, ``failed`` (with a failure record), ``damaged`` or ``missing``.
    reason
        Why it failed or is damaged, for people.
    cause
        Class of the failure: ``CODE``, ``OOM``, ``TIME``, ``NODE``, ...; empty unless failed.
    """

    state: State
    reason: str = ""
    cause: str = ""


def measurements_table(cell_id: str, rows: Sequence[Measurement]) -> pa.Table:
    """Rows of one cell as an Arrow table in `schema.MEASUREMENTS`."""
    columns: dict[str, list[Any]] = {"cell_id": [cell_id] * len(rows)}
    for name in schema.MEASUREMENTS.names[1:]:
        columns[name] = [getattr(row, name) for row in rows]
    return pa.table(columns, schema=schema.MEASUREMENTS)


def write_shard(folder: CellFolder, row: Mapping[str, Any], rows: Sequence[Measurement]) -> None:
    """Write a cell's figures and then its row; the cell is done once this returns.

    Parameters
    ----------
    folder
        The cell's folder.
    row
        Values of `schema.CELL` without the columns about the shard itself.
    rows
        The measurements.
    """
    write_table(folder, row, measurements_table(str(row["cell_id"]), rows))


def write_table(folder: CellFolder, row: Mapping[str, Any], table: pa.Table) -> None:
    """Write a cell's figures, already a table in `schema.MEASUREMENTS`, and then its row."""
    _stay_inside(folder)
    for path in (folder.measurements, folder.row):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # whatever made it, it stands where the shard belongs and no file can replace it
    write_atomically(folder.measurements, lambda path: pq.write_table(table, path, **FIGURES_ON_DISK))
    values = dict(row)
    values["measurements_rows"] = table.num_rows
    values["measurements_sha256"] = sha256_file(folder.measurements)
    # The digest is of what a reader gets back: an integer in a column of fractions is 0.0 there.
    values["row_sha256"] = ""
    stored = pa.Table.from_pylist([values], schema=schema.CELL).to_pylist()[0]
    values["row_sha256"] = _row_digest(stored)
    stored["row_sha256"] = values["row_sha256"]
    content = _row_file(stored)
    write_atomically(folder.row, lambda path: path.write_bytes(content))
    with suppress(FileNotFoundError):
        folder.failure.unlink()


def write_failure(folder: CellFolder, cause: str, message: str, **details: Any) -> None:
    """Record why a cell failed, beside where its shard will be."""
    _stay_inside(folder)
    write_text(folder.failure, json.dumps({"cause": cause, "message": message, **details}, indent=1))


def _stay_inside(folder: CellFolder) -> None:
    """Refuse to write through a link: a run folder from someone else must not lead out of itself."""
    for path in (folder.root, folder.root.parent):
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link; nothing is written through it", "remove the link")


def _row_file(stored: Mapping[str, Any]) -> bytes:
    """Content of ``cell.parquet``."""
    sink = io.BytesIO()
    # One row does not compress, and its statistics are the row again: both cost readers of many cells their time.
    with pq.ParquetWriter(
        sink, _ROW_ON_DISK, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        writer.write_table(pa.Table.from_pylist([stored], schema=_ROW_ON_DISK))
        if all(math.isfinite(value) for value in stored.values() if isinstance(value, float)):
            text = _digested(stored)
            columns = hashlib.sha256(sink.getvalue()).hexdigest()
            head = _ROW_HEAD.format(schema.SCHEMA_VERSION, columns, stored["row_sha256"], len(text))
            writer.add_key_value_metadata({_ROW_KEY: head + text.decode()})
    return sink.getvalue()


def read_row(folder: CellFolder, cell_id: str) -> dict[str, Any]:
    """Row of a done cell; `ShardError` where it cannot be trusted, FileNotFoundError where there is none."""
    try:
        # Read as one buffer: a memory-mapped shard on a network file system can raise SIGBUS.
        content = folder.row.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ShardError(f"{folder.row} cannot be read: {error}") from error
    row = _row_as_json(content) or _row_of_columns(folder.row, content)
    if row["cell_id"] != cell_id:
        raise ShardError(f"{folder.row} belongs to cell {row['cell_id']}")
    return row


def read_measurements(
    folder: CellFolder, row: Mapping[str, Any], *, verify: bool = True, dictionaries: bool = False
) -> pa.Table:
    """Figures of a cell whose row was read; `ShardError` where they do not match it.

    Parameters
    ----------
    folder, row
        The cell.
    verify
        Compare the file's digest with the one in the row.
    dictionaries
        Text columns come as codes into a dictionary, as they are stored: half the time, a fraction of the memory.
    """
    path = folder.measurements
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error}") from error
    if verify and hashlib.sha256(content).hexdigest() != row["measurements_sha256"]:
        raise ShardError(f"{path} does not match its digest")
    table = _parse(path, content, schema.MEASUREMENTS, dictionaries)
    if table.num_rows != row["measurements_rows"]:
        raise ShardError(f"{path} has {table.num_rows} rows instead of {row['measurements_rows']}")
    return table


def shard_state(folder: CellFolder, cell_id: str, *, verify: bool = True) -> ShardState:
    """Look at a cell's files and say what it is; never raises for a damaged one."""
    try:
        row = read_row(folder, cell_id)
        if verify:
            read_measurements(folder, row)
        elif not folder.measurements.is_file():
            return ShardState("damaged", f"{folder.measurements.name} is missing")
    except FileNotFoundError:
        return _without_row(folder)
    except (ShardError, OSError) as error:
        return ShardState("damaged", str(error))
    return ShardState("done")


def _without_row(folder: CellFolder) -> ShardState:
    try:
        record = json.loads(folder.failure.read_text(encoding="utf-8"))
        return ShardState("failed", str(record["message"]), str(record["cause"]))
    except FileNotFoundError:
        return ShardState("missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return ShardState("damaged", f"{folder.failure.name} cannot be read: {error}")


def _row_as_json(content: bytes) -> dict[str, Any] | None:
    """The row from the file's metadata; None where it has none or anything is odd, which its columns then decide."""
    footer = len(content) - _FILE_END_BYTES - int.from_bytes(content[-_FILE_END_BYTES:][:4], "little")
    found = _ROW_FOUND.search(content, max(footer, 0))
    if found is None or int(found[1]) != schema.SCHEMA_VERSION:
        return None
    text = content[found.end() : found.end() + int(found[4])]
    digests = (hashlib.sha256(content[:footer]).hexdigest(), hashlib.sha256(text).hexdigest())
    if digests != (found[2].decode(), found[3].decode()):
        return None
    values = json.loads(text) | {"row_sha256": found[3].decode()}
    return {name: values.get(name) for name in schema.CELL.names}


def _row_of_columns(path: Path, content: bytes) -> dict[str, Any]:
    table = _parse(path, content, schema.CELL)
    if table.num_rows != 1:
        raise ShardError(f"{path} has {table.num_rows} rows instead of 1")
    row: dict[str, Any] = table.to_pylist()[0]
    if row["row_sha256"] != _row_digest(row):
        raise ShardError(f"{path} does not match its digest")
    return row


def _parse(path: Path, content: bytes, expected: pa.Schema, dictionaries: bool = False) -> pa.Table:
    texts = [field.name for field in expected if pa.types.is_string(field.type)] if dictionaries else []
    if texts:
        coded = pa.dictionary(pa.int32(), pa.string())
        expected = pa.schema([field.with_type(coded) if field.name in texts else field for field in expected])
    try:
        # Not pq.read_table: its machinery for data sets of many files costs more than such a file.
        file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts)
        table = file.read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{path} cannot be read: {error}") from error
    try:
        return schema.conform(table, expected)
    except ValueError as error:
        raise ShardError(f"{path}: {error}") from error


def _row_digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(_digested(row)).hexdigest()


def _digested(row: Mapping[str, Any]) -> bytes:
    """What the digest of a row is of."""
    values = {}
    for name in schema.CELL.names:
        if name == "row_sha256":
            continue
        value = row.get(name)
        if value is None:
            # A column that is newer than the row must not change its digest.
            continue
        values[name] = repr(value) if isinstance(value, float) and not math.isfinite(value) else value
    return json.dumps(values, sort_keys=True).encode()

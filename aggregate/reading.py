"""Read figures fast: the numbers of every shard, its text only where no shard with the same text was read before.

The text columns of a shard (scope, subject, metric, ...) are the same bytes in all shards of one model and variant.
Their digest names a `Pivot`, which is built once a process; two columns of numbers are all that is decoded after that.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from aggregate.pivot import Floats, Pivot
from sparsehpc.core import schema, shards
from sparsehpc.core.layout import CellFolder

_NUMBERS = ("numerator", "denominator")
_TEXTS = [name for name in schema.MEASUREMENTS.names if name not in ("cell_id", *_NUMBERS)]

#: First and last column of each run of text columns, which lie one after the other in a row group.
_RUNS = tuple(
    tuple(schema.MEASUREMENTS.names.index(name) for name in ends)
    for ends in (("scope", "metric"), ("reduction", "unit"))
)

#: Arrangements that are kept; a study has a few per model.
_KEPT = 512

_lock = threading.Lock()
_pivots: dict[tuple[str, bytes], Pivot] = {}
_checked: set[bytes] = set()


class Numbers(NamedTuple):
    """Figures of one cell: what its rows mean, and their numbers."""

    pivot: Pivot
    numerator: Floats
    denominator: Floats


def read_cell(folder: CellFolder, row: Mapping[str, Any], scopes: Collection[str]) -> Numbers:
    """Figures of a cell; `shards.ShardError` where they do not match its row."""
    path = folder.measurements
    try:
        content = path.read_bytes()
    except OSError as error:
        raise shards.ShardError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != row["measurements_sha256"]:
        raise shards.ShardError(f"{path} does not match its digest")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if file.metadata.num_row_groups != 1 or not _known_schema(file):
            # Rare (an empty shard, or another version): the general reader knows every reason to refuse it.
            table = shards.read_measurements(folder, row, verify=False)
            return Numbers(Pivot(table.select(_TEXTS), scopes), *(table[name].to_numpy() for name in _NUMBERS))
        if file.metadata.num_rows != row["measurements_rows"]:
            raise shards.ShardError(f"{path} has {file.metadata.num_rows} rows instead of {row['measurements_rows']}")
        numbers = file.read_row_group(0, columns=list(_NUMBERS), use_threads=False)
        return Numbers(pivot_of(file, content, 0, scopes), *(numbers[name].to_numpy() for name in _NUMBERS))
    except (OSError, pa.ArrowException) as error:
        raise shards.ShardError(f"{path} cannot be read: {error}") from error


def pivot_of(file: pq.ParquetFile, content: bytes, group: int, scopes: Collection[str]) -> Pivot:
    """What the rows of a row group mean; worked out once for equal bytes of text."""
    key = (",".join(sorted(scopes)), _digest_of_text(file, content, group))
    found = _pivots.get(key)
    if found is None:
        found = Pivot(file.read_row_group(group, columns=_TEXTS, use_threads=False), scopes)
        with _lock:
            if len(_pivots) >= _KEPT:
                _pivots.clear()
            _pivots[key] = found
    return found


def _known_schema(file: pq.ParquetFile) -> bool:
    """Whether a file has our schema and version; looked at once for equal bytes."""
    metadata = file.metadata.metadata or {}
    stamp = metadata.get(b"ARROW:schema", b"") + metadata.get(b"sparsehpc.schema_version", b"")
    if stamp in _checked:
        return True
    version = metadata.get(b"sparsehpc.schema_version", b"").decode()
    good = file.schema_arrow.equals(schema.MEASUREMENTS, check_metadata=False) and version == str(schema.SCHEMA_VERSION)
    if good and stamp:
        _checked.add(stamp)
    return bool(good)


def _digest_of_text(file: pq.ParquetFile, content: bytes, group: int) -> bytes:
    """Digest of the bytes of all text columns, which lie together before the numbers and after them."""
    metadata = file.metadata.row_group(group)
    digest = hashlib.blake2b(f"{file.metadata.created_by} {metadata.num_rows}".encode(), digest_size=20)
    for first, last in _RUNS:
        column, end = metadata.column(first), metadata.column(last)
        digest.update(f" {column.compression} ".encode())
        digest.update(content[_start(column) : _start(end) + end.total_compressed_size])
    return digest.digest()


def _start(column: pq.ColumnChunkMetaData) -> int:
    return int(column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset)

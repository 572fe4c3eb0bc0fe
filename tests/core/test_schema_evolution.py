"""Runs outlive releases: a new column is null in old shards, an unknown one is left out, a changed one is refused."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsehpc.core import schema, shards
from sparsehpc.core.layout import CellFolder
from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import Cell, Windows

CELL = Cell(model="m", evaluation=Windows(corpus="samples", windows=1, window_tokens=8))


@pytest.fixture
def folder(tmp_path):
    from sparsehpc.core.keys import key_row

    values = {
        field.name: {pa.string(): "", pa.int64(): 0, pa.int32(): 0, pa.float64(): 0.0, pa.bool_(): True}[field.type]
        for field in schema.CELL
    }
    cell = CellFolder(tmp_path / CELL.cell_id)
    shards.write_shard(cell, values | key_row(CELL), [Measurement("model", "model", "sparsity", 1, 4, "ratio")])
    return cell


def state(folder):
    return shards.shard_state(folder, CELL.cell_id)


def test_a_column_added_later_is_null_in_old_shards(folder, monkeypatch):
    assert state(folder).state == "done"
    newer = schema.CELL.append(pa.field("energy_j", pa.float64(), nullable=True))
    monkeypatch.setattr(schema, "CELL", newer)
    assert state(folder).state == "done"
    assert shards.read_row(folder, CELL.cell_id)["energy_j"] is None


def test_a_column_of_a_newer_release_is_left_out(folder):
    table = pq.read_table(folder.row)
    pq.write_table(table.append_column("energy_j", pa.array([1.0])), folder.row)
    assert state(folder).state == "done"
    assert "energy_j" not in shards.read_row(folder, CELL.cell_id)


@pytest.mark.parametrize("change", ["type", "missing", "version"])
def test_what_cannot_be_read_is_named(change, folder):
    table = pq.read_table(folder.row)
    place = table.schema.get_field_index("threads")
    if change == "type":
        table = table.set_column(place, "threads", pa.array(["2"]))
    elif change == "missing":
        table = table.remove_column(place)
    else:
        table = table.replace_schema_metadata({"sparsehpc.schema_version": "99"})
    pq.write_table(table, folder.row)
    found = state(folder)
    assert found.state == "damaged"
    assert {"type": "threads is string", "missing": "threads is missing", "version": "version 99"}[
        change
    ] in found.reason


def test_the_row_in_the_metadata_is_that_of_the_columns(folder, monkeypatch):
    quick = shards.read_row(folder, CELL.cell_id)
    with monkeypatch.context() as patched:
        patched.setattr(shards, "_row_as_json", lambda content: None)
        assert list(shards.read_row(folder, CELL.cell_id).items()) == list(quick.items())
    monkeypatch.setattr(shards, "_row_of_columns", None)  # not needed for what this release wrote
    assert shards.read_row(folder, CELL.cell_id) == quick


def test_a_row_with_an_infinite_figure_or_of_an_older_release_is_read_from_its_columns(folder):
    row = shards.read_row(folder, CELL.cell_id)
    table = shards.read_measurements(folder, row)
    shards.write_table(folder, row | {"prune_s": math.inf}, table)
    assert shards.read_row(folder, CELL.cell_id)["prune_s"] == math.inf
    shards.write_table(folder, row, table)
    # An older release wrote the columns alone.
    pq.write_table(pq.read_table(folder.row).replace_schema_metadata(schema.CELL.metadata), folder.row)
    assert b"sparsehpc.row" not in folder.row.read_bytes()
    assert shards.read_row(folder, CELL.cell_id) == row


def test_no_changed_byte_of_a_row_changes_what_is_read(folder):
    """Whether the metadata or the columns are hit, the row is the one that was written, or it is refused."""
    row, content = shards.read_row(folder, CELL.cell_id), folder.row.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 0x11
        folder.row.write_bytes(changed)
        try:
            assert shards.read_row(folder, CELL.cell_id) == row
        except shards.ShardError:
            continue

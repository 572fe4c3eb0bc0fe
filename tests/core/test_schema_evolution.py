"""Runs outlive releases: a new column is null in old shards, an unknown one is left out, a changed one is refused."""

from __future__ import annotations

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

"""plan.parquet: cells come back as they went in; damage and other versions are told apart."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.plan import make_plan
from jobs.plan_file import find_cell, planned_ids, read_plan, write_plan
from jobs.study import parse_study
from sparsehpc.core import schema
from sparsehpc.core.errors import UserError
from sparsehpc.core.keys import key_row
from sparsehpc.core.spec import Cell

STUDY = """\
[study]
name = "p"
[[models]]
id = "random:opt-125m"
[grid]
methods = ["magnitude", "wanda"]
sparsities = [0.3, 0.5]
variants = ["masked", "csr"]
tie_rule = "threshold"
[evaluation]
corpus = "samples"
windows = 4
window_tokens = 32
[calibration]
corpus = "python-docs"
windows = 2
window_tokens = 32
"""


@pytest.fixture
def cells() -> tuple[Cell, ...]:
    return make_plan(parse_study(STUDY, Path("p.toml"))).cells


@pytest.fixture
def path(tmp_path: Path, cells: tuple[Cell, ...]) -> Path:
    write_plan(tmp_path / "plan.parquet", cells)
    return tmp_path / "plan.parquet"


def test_cells_come_back_in_order(path: Path, cells: tuple[Cell, ...]) -> None:
    assert tuple(read_plan(path)) == cells
    assert planned_ids(path) == [cell.cell_id for cell in cells]


def test_some_cells_can_be_read_alone(path: Path, cells: tuple[Cell, ...]) -> None:
    wanted = [cells[3].cell_id, cells[1].cell_id]
    assert read_plan(path, wanted) == [cells[1], cells[3]]


def test_columns_are_the_keys(path: Path, cells: tuple[Cell, ...]) -> None:
    table = pq.read_table(path)
    assert table.schema.equals(schema.PLAN, check_metadata=False)
    rows = table.to_pylist()
    assert [row["order"] for row in rows] == list(range(len(cells)))
    for row, cell in zip(rows, cells, strict=True):
        assert {name: row[name] for name in schema.KEYS.names} == key_row(cell)


def test_a_plan_longer_than_one_batch(tmp_path: Path, cells: tuple[Cell, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.plan_file._ROWS_PER_GROUP", 2)
    write_plan(tmp_path / "long.parquet", cells)
    assert pq.ParquetFile(tmp_path / "long.parquet").num_row_groups == 5
    assert tuple(read_plan(tmp_path / "long.parquet")) == cells
    assert pq.read_table(tmp_path / "long.parquet")["order"].to_pylist() == list(range(9))


def test_a_cell_by_the_beginning_of_its_id(path: Path, cells: tuple[Cell, ...]) -> None:
    assert find_cell(path, cells[2].cell_id[:9]) == cells[2]
    with pytest.raises(UserError, match=r"no cell of .* begins with 'zz'"):
        find_cell(path, "zz")
    with pytest.raises(UserError, match="no cell"):
        find_cell(path, "")


def test_an_id_that_is_not_planned(path: Path) -> None:
    with pytest.raises(UserError, match="holds no cell 00000000000000000000"):
        read_plan(path, ["0" * 20])


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        read_plan(tmp_path / "plan.parquet")


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_plan(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"not parquet", "empty": b""}[damage])
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(path)


def test_a_plan_of_another_version(path: Path) -> None:
    table = pq.read_table(path).replace_schema_metadata({"sparsehpc.schema_version": "0"})
    pq.write_table(table, path)
    with pytest.raises(UserError, match=r"schema version 0.*\n.*the version that made the run"):
        read_plan(path)


def test_a_specification_that_does_not_match_its_id(path: Path) -> None:
    """An edited plan, or one of a version that hashed otherwise, must not silently compute other cells."""
    table = pq.read_table(path)
    specs = [spec.replace('"0.3"', '"0.4"') for spec in table["spec"].to_pylist()]
    pq.write_table(table.set_column(table.schema.names.index("spec"), schema.PLAN.field("spec"), pa.array(specs)), path)
    with pytest.raises(UserError, match="another identity"):
        read_plan(path)

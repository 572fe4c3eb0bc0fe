"""The dense model against itself, and differences that are not larger."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from aggregate import floor
from aggregate.api import aggregate_run
from aggregate.compare import WindowSums, difference
from aggregate.diff import diff_runs
from aggregate.export import export_table
from aggregate.report import write_report
from aggregate.tables import read_table
from sparsehpc.core import shards
from sparsehpc.core.layout import RunFolder

FLOORS = ("floor_top1_agreement", "floor_kl", "floor_kl_max", "floor_nll", "floor_nll_max", "floor_positions")
GRID = {"sparsities": ("0", "0.3"), "variants": ("masked",), "windows": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory, synthetic) -> RunFolder:
    """Two dtypes; the cell at 0 % is the dense model."""
    made = RunFolder(tmp_path_factory.mktemp("floor") / "run")
    cells = [cell for dtype in ("float32", "bfloat16") for cell in synthetic.cells_of("tiny", dtype=dtype, **GRID)]
    synthetic.write_plan(made, cells)
    for cell in cells:
        synthetic.write_cell(made, cell, synthetic.TINY)
    # bfloat16 rounds more: another floor.
    rows = [
        row._replace(numerator=row.numerator * (1000 if row.metric == "floor_kl_max" else 1))
        for row in synthetic.structure_rows(cells[3], synthetic.TINY)
        + synthetic.window_rows(cells[3], synthetic.TINY, 20)
    ]
    shards.write_shard(made.cell(cells[3].cell_id), synthetic.cell_row(cells[3], synthetic.TINY), rows)
    aggregate_run(made, figures=False)
    return made


def test_every_cell_shows_the_floor_of_its_own_dense_model(run):
    table = read_table(run, "global").to_pandas()
    assert table[list(FLOORS)].notna().all().all()
    assert table.groupby("dtype")["floor_kl_max"].unique().map(list).to_dict() == {
        "float32": [4e-12],
        "bfloat16": [4e-9],
    }
    assert set(table["floor_positions"]) == {1500}


def test_without_a_dense_cell_there_is_no_floor(make_run, synthetic):
    run = make_run(**GRID)
    dense = synthetic.cells_of("tiny", **GRID)[0]
    for path in run.cell(dense.cell_id).root.iterdir():
        path.unlink()
    aggregate_run(run, figures=False)
    table = read_table(run, "global").to_pandas()
    assert not [name for name in table if name.startswith("floor_")]
    assert not any(floor.mark(row) for row in table.to_dict("records"))


def test_floors_by_eye():
    row = {"method": "magnitude", "floor_top1_agreement": 1.0, "floor_positions": 500, "floor_kl_max": 1e-11}
    row |= {"floor_nll_max": 1e-6, "top1_agreement": 0.998, "kl": 1e-11, "log_perplexity_difference": -1e-6}
    assert floor.floor_of("top1_agreement", row) == 1 / 500
    assert floor.floor_of("top1_agreement", row | {"floor_top1_agreement": 0.99}) == pytest.approx(0.01)
    assert (floor.floor_of("kl", row), floor.floor_of("perplexity", row), floor.floor_of("bytes_total", row)) == (
        1e-11,
        1e-6,
        0,
    )
    assert floor.mark(row) == "no measurable difference from dense"
    assert floor.mark(row | {"kl": 1.1e-5}) == ""
    assert floor.mark(row | {"kl": 9e-6, "log_perplexity_difference": -9e-6}) != ""
    assert floor.mark(row | {"log_perplexity_difference": 1.1e-5}) == ""
    assert floor.mark(row | {"top1_agreement": 0.99}) == ""
    assert floor.mark(row | {"method": "none", "variant": "dense"}) == ""
    assert floor.mark(row | {"method": "none", "variant": "dense-q4"}) != ""
    for absent in (None, math.nan, pd.NA):
        assert floor.floor_of("kl", {"floor_kl_max": absent}) == 0
        assert floor.mark(row | {"floor_kl_max": absent}) == ""


def test_a_difference_below_the_floor_is_no_measurable_one(run):
    sums = WindowSums(read_table(run, "windows").to_pandas())
    cell = read_table(run, "global").to_pandas().query("sparsity_target == 0.3")["cell_id"].iloc[0]
    top, tokens = sums.get(cell, "kl")
    # Every window a little worse: the interval leaves 0 out, and only the floor says that it is rounding.
    second = (top + tokens * 1e-4, tokens)
    assert difference("kl", (top, tokens), second).verdict == "worse"
    found = difference("kl", (top, tokens), second, floor=2e-4)
    assert (found.verdict, found.why) == ("same", "no measurable difference")


def test_diff_asks_the_floor_of_both_runs(run, tmp_path, synthetic):
    """Likelihoods that differ by less than the dense model's own are the same figure."""
    import shutil

    shutil.copytree(run.root, tmp_path / "other")
    other = RunFolder(tmp_path / "other")
    cell = synthetic.cells_of("tiny", dtype="float32", **GRID)[2]
    rows = [
        row._replace(numerator=row.numerator + row.denominator * 1e-6 * (20 + int(row.subject) / 3))
        if row.metric in ("nll", "perplexity")
        else row
        for row in synthetic.structure_rows(cell, synthetic.TINY) + synthetic.window_rows(cell, synthetic.TINY, 20)
    ]
    shards.write_shard(other.cell(cell.cell_id), synthetic.cell_row(cell, synthetic.TINY), rows)
    aggregate_run(other, figures=False)
    (line,) = [
        line for line in diff_runs(run, other).lines if (line.cell_id, line.metric) == (cell.cell_id, "perplexity")
    ]
    assert line.difference.verdict == "worse"
    dense = synthetic.cells_of("tiny", dtype="float32", **GRID)[0]
    rows = [
        row._replace(numerator=3e-5) if row.metric == "floor_nll_max" else row
        for row in synthetic.structure_rows(dense, synthetic.TINY) + synthetic.window_rows(dense, synthetic.TINY, 20)
    ]
    shards.write_shard(other.cell(dense.cell_id), synthetic.cell_row(dense, synthetic.TINY), rows)
    aggregate_run(other, figures=False)
    (line,) = [
        line for line in diff_runs(run, other).lines if (line.cell_id, line.metric) == (cell.cell_id, "perplexity")
    ]
    assert (line.difference.verdict, line.difference.why) == ("same", "no measurable difference")


def test_export_and_report_say_it_in_words(run, monkeypatch):
    monkeypatch.setattr("aggregate.report.draw_figures", lambda run: [])
    text = export_table(run)
    assert "no measurable difference from dense" in text
    lines = [line for line in text.splitlines() if line.startswith("| tiny")]
    marked = [line for line in lines if "†" in line]
    assert len(marked) == 2
    assert all("| 0 | masked |" in line for line in marked)
    page = write_report(run).read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "keeps 99.9 % of its own choices at 1,500 positions" in page
    assert page.count("no measurable difference from dense") >= 2
    assert "smaller differences are no measurable difference" in (run.report / "summary.md").read_text()

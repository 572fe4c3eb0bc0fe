"""Bins: their table in order with edges as numbers, their rows on the page, their views."""

from __future__ import annotations

import json
import math

import pytest

from aggregate.api import aggregate_run
from aggregate.figures.data import load
from aggregate.report import write_report
from aggregate.report.bins import bin_rows, bin_views
from aggregate.tables import read_table


@pytest.fixture(scope="module")
def run(tmp_path_factory, synthetic):
    made = synthetic.write_run(
        tmp_path_factory.mktemp("bins") / "run", sparsities=("0.1", "0.3"), methods=("magnitude", "random"), windows=16
    )
    aggregate_run(made, figures=False)
    return made


def test_bins_stand_in_order_with_their_edges(run):
    table = read_table(run, "bins").to_pandas()
    one = table[table["cell_id"] == table["cell_id"].iloc[-1]]
    assert one["bin"].tolist() == [
        "margin [0, 0.1)",
        "margin [0.1, 3)",
        "margin [3, inf)",
        "position [0, 16)",
        "position [16, inf)",
    ]
    assert one["bin_of"].tolist() == ["margin"] * 3 + ["position"] * 2
    assert one["bin_from"].tolist() == [0, 0.1, 3, 0, 16]
    assert one["bin_to"].tolist() == [0.1, 3, math.inf, 16, math.inf]
    assert (one["top1_agreement"] == one["top1_agreement_numerator"] / one["top1_agreement_denominator"]).all()
    assert str(table["dense_only_right"].dtype) == "int64"


def test_the_page_has_a_table_of_the_shown_sparsity_and_views_of_all(run, monkeypatch):
    monkeypatch.setattr("aggregate.report.draw_figures", lambda run: [])
    models = load(run)
    rows, more = bin_rows(models)
    assert (len(rows), more) == (2 * 5, False)
    assert {row[2] for row in rows} == {"30 %"}
    assert rows[2][4:7] == ["margin of the dense model (nats)", "3 and more", "800"]
    drawn = list(bin_views(models))
    assert [(one["method"], one["s"]) for one in drawn] == [
        ("magnitude", 0.1),
        ("magnitude", 0.3),
        ("random", 0.1),
        ("random", 0.3),
    ]
    json.dumps(drawn, allow_nan=False)
    table = read_table(run, "bins").to_pandas()
    cell = load(run)[0].table.query("method == 'random' and sparsity_target == 0.3 and variant == 'masked'")["cell_id"]
    own = table[table["cell_id"] == cell.iloc[0]]
    assert drawn[3]["by"]["margin"]["lost"] == own["dense_only_right"].tolist()[:3]
    page = write_report(run).read_text(encoding="utf-8")
    assert "Agreement and flips by margin and position" in page
    assert "tokens that dense predicts are lost" in page.replace("&#39;", "'")


def test_a_run_without_bins_has_a_report_all_the_same(run, tmp_path, monkeypatch):
    import shutil

    from sparsehpc.core.layout import RunFolder

    monkeypatch.setattr("aggregate.report.draw_figures", lambda run: [])
    shutil.copytree(run.root, tmp_path / "run")
    copy = RunFolder(tmp_path / "run")
    for name in ("bins.parquet", "bins.csv"):
        (copy.tables / name).unlink()
    assert "Agreement and flips by margin" not in write_report(copy).read_text(encoding="utf-8")

"""Combinations differ in every axis, not in method and pattern alone; seeds are a mean and a range."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from aggregate.advise import Limits, advise
from aggregate.api import aggregate_run
from aggregate.export import export_table
from aggregate.figures import FIGURES, agreement, pareto, perplexity, size
from aggregate.figures.curves import series
from aggregate.figures.data import load
from aggregate.report import reach, write_report
from aggregate.report.facts import facts_of
from aggregate.report.views import views
from aggregate.tables import read_table
from aggregate.tipping import BELOW_FIRST, NOT_REACHED, REACHED
from sparsehpc.core.layout import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory, synthetic) -> RunFolder:
    """Wanda plain, refit and in turn with three seeds; magnitude with two option sets, two revisions of a model."""
    folder = RunFolder(tmp_path_factory.mktemp("axes") / "run")
    grid = {"sparsities": ("0.3", "0.5"), "variants": ("masked",), "windows": 16}
    wanda = synthetic.cells_of("tiny", methods=("wanda",), seeds=(0, 1, 2), **grid)
    refit = [
        dataclasses.replace(cell, pruning=dataclasses.replace(cell.pruning, refit=True))
        for cell in wanda
        if not cell.is_dense
    ]
    magnitude = [cell for cell in synthetic.cells_of("tiny", **grid) if not cell.is_dense]
    options = [
        dataclasses.replace(cell, pruning=dataclasses.replace(cell.pruning, options=(("tie_rule", "threshold"),)))
        for cell in magnitude
    ]
    other = [dataclasses.replace(cell, revision="abc123") for cell in synthetic.cells_of("tiny", **grid)]
    in_turn = [
        dataclasses.replace(cell, pruning=dataclasses.replace(cell.pruning, true_sequential=True)) for cell in refit
    ]
    cells = [*wanda, *refit, *in_turn, *magnitude, *options, *other]
    assert len({cell.cell_id for cell in cells}) == len(cells)
    synthetic.write_plan(folder, cells)
    for cell in cells:
        synthetic.write_cell(folder, cell, synthetic.TINY)
    aggregate_run(folder, figures=False)
    return folder


def test_ways_of_pruning_are_told_apart_by_every_axis(run):
    first, other = load(run)
    assert [method.words for method in first.methods] == [
        "wanda (unstructured)",
        "wanda (unstructured, refit)",
        "wanda (unstructured, refit, true sequential)",
        "magnitude (unstructured)",
        "magnitude (unstructured, tie_rule=threshold)",
    ]
    assert [method.words for method in other.methods] == ["magnitude (unstructured)"]
    cells = [set(method.rows(first.pruned)["cell_id"]) for method in first.methods]
    assert [len(ids) for ids in cells] == [6, 6, 6, 2, 2]
    assert len(set.union(*cells)) == 22


def test_revisions_of_a_model_do_not_meet(run):
    first, other = load(run)
    assert (first.subject.extra, other.subject.extra) == ("no revision", "revision abc123")
    assert first.subject.slug != other.subject.slug
    assert not set(first.table["cell_id"]) & set(other.table["cell_id"])
    assert set(other.groups["cell_id"]) == set(other.table["cell_id"])
    assert len(advise(run, Limits.parse("+50%"))) == 2
    tipping = read_table(run, "tipping").to_pandas()
    assert len(tipping) == 2 * (3 + 3 + 3 + 1 + 1 + 1)


def test_seeds_are_a_mean_and_a_range(run):
    first = load(run)[0]
    wanda = first.methods[0]
    found = first.over_seeds(wanda, "perplexity").set_index("sparsity_target")
    values = wanda.rows(first.pruned).query("sparsity_target == 0.5")["perplexity"]
    assert found.loc[0.5, "seeds"] == 3
    assert found.loc[0.5, "value"] == pytest.approx(math.exp(np.log(values).mean()))
    assert (found.loc[0.5, "lo"], found.loc[0.5, "hi"]) == (values.min(), values.max())
    one = first.over_seeds(first.methods[3], "perplexity").iloc[0]
    row = first.methods[3].rows(first.pruned).iloc[0]
    assert (one["lo"], one["hi"]) == (row["perplexity_lo"], row["perplexity_hi"])


def test_legends_name_what_varies_and_bands_say_what_they_are(run):
    for module in (agreement, perplexity):
        axes = module.draw(load(run)[0]).axes[0]
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert "masked, wanda unstructured refit, true sequential, mean of 3 seeds" in labels
        assert "masked, magnitude unstructured tie_rule=threshold" in labels
        notes = [text.get_text() for text in axes.texts]
        assert "bands: 95 % intervals and range over calibration seeds" in notes


def test_no_bands_no_word_of_them(make_run):
    run = make_run(sparsities=("0.3",), windows=5)
    aggregate_run(run, figures=False)
    axes = agreement.draw(load(run)[0]).axes[0]
    assert not any("bands" in text.get_text() for text in axes.texts)
    assert not any("95 %" in module.CAPTION for module in FIGURES)


def test_a_figure_of_one_method_shows_each_sparsity_once(run):
    axes = size.draw(load(run)[0]).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["dense", "masked 30 %", "masked 50 %"]


def test_report_and_export_have_a_column_per_varying_axis(run, monkeypatch):
    monkeypatch.setattr("aggregate.report.draw_figures", lambda run: [])
    text = write_report(run).read_text(encoding="utf-8")
    for heading in ("revision", "options", "refit", "true sequential", "calibration corpus"):
        assert f'<th scope="col">{heading}</th>' in text
    assert '<th scope="col">allocation</th>' not in text
    assert "mean of 3 calibration seeds" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    extras = data["cells"]["columns"]["extra"]
    assert {"refit, true sequential", "refit", "", "tie_rule=threshold"} <= set(extras["names"])
    assert len(data["models"]) == 2
    head = export_table(run).splitlines()[0]
    assert "| revision |" in head
    assert "| refit |" in head
    assert "allocation" not in head


def test_dense_rows_do_not_count_as_a_way_of_pruning(run):
    assert isinstance(load(run)[0].dense, pd.DataFrame)
    assert len(load(run)[0].dense) == 1


def test_nothing_is_drawn_or_said_between_dense_and_the_first_sparsity_measured(tmp_path, synthetic):
    """CSR at 50 % alone must not look as if it were worse at 30 %, nor may a crossing be read off an empty stretch."""
    folder = RunFolder(tmp_path / "run")
    grid = {"sparsities": ("0.3", "0.5"), "windows": 16}
    cells = [
        cell for cell in synthetic.cells_of("tiny", **grid) if cell.variant != "csr" or cell.pruning.sparsity == "0.5"
    ]
    assert sorted({cell.variant for cell in cells}) == ["csr", "dense", "masked"]
    synthetic.write_plan(folder, cells)
    for cell in cells:
        synthetic.write_cell(folder, cell, synthetic.TINY)
    aggregate_run(folder, figures=False)
    (data,) = load(folder)
    points = {variant: rows["sparsity_target"].tolist() for _, _, variant, rows in series(data, "perplexity")}
    assert points == {"masked": [0.0, 0.3, 0.5], "csr": [0.5]}
    first = data.tipping[(data.tipping["metric"] == "perplexity") & (data.tipping["variant"] == "masked")].iloc[0]
    assert first["answer"] == BELOW_FIRST
    axes = perplexity.draw(data).axes[0]
    assert not [line for line in axes.lines if list(line.get_ydata()) == [0, 1]]  # no vertical line
    (told,) = facts_of([data], data.table.iloc[:0])
    said = " ".join(fact.text for fact in told.facts)
    assert "somewhere below 30 %, the first sparsity that was measured" in said
    drawn = json.loads(
        views([data], read_table(folder, "global").to_pandas(), read_table(folder, "groups").to_pandas()).text
    )
    assert drawn["tipping"] == []


def test_headline_compares_methods_at_one_sparsity_and_says_when_that_is_no_ranking(run):
    none = read_table(run, "global").to_pandas().iloc[:0]
    for data, model in zip(load(run), facts_of(load(run), none), strict=True):
        said = [fact.text for fact in model.facts if fact.text.startswith("By which method, at 30 %")]
        ways = [data.of_method(data.pruned, method) for method in data.methods]
        at = [rows[rows["sparsity_target"] == 0.3]["top1_agreement"].mean() for rows in ways]
        assert len(said) == (len(ways) > 1)
        for text in said:
            kept = [float(found) for found in re.findall(r"keeps ([\d.]+) %", text)]
            assert kept == sorted(kept, reverse=True)
            assert kept[0] == pytest.approx(100 * max(at), abs=0.06)


def test_headline_says_how_far_every_way_goes_and_what_that_gains(run):
    none = read_table(run, "global").to_pandas().iloc[:0]
    for data, model in zip(load(run), facts_of(load(run), none), strict=True):
        texts = [fact.text for fact in model.facts]
        far = [text for text in texts if text.startswith("How far it can be pruned within")]
        rows = data.tipping[data.tipping["metric"] == "perplexity"].drop_duplicates(["method", "options"])
        assert len(far) == (len(rows) > 1)
        for text in far:
            ends = [float(end) for end in re.findall(r"to (?:about )?([\d.]+) %[ ,]", text)]
            reached = rows[rows["answer"].isin([REACHED, NOT_REACHED])]
            assert len(ends) == min(len(reached), 4)
            assert ends == sorted(ends, reverse=True)
        smaller = data.pruned[data.pruned["bytes_total"] < data.pruned["bytes_dense_float32"]]
        gains = [text for text in texts if text.startswith("What zeros save in memory")]
        assert len(gains) == (not smaller[smaller["pattern"] == "unstructured"].empty)
        for text in gains:
            said = re.findall(r"([\d.]+) % smaller at ([\d.]+) %", text)
            assert said
            for change, sparsity in said:
                at = smaller[np.isclose(smaller["sparsity_target"], float(sparsity) / 100)]
                least = (at["bytes_total"] / at["bytes_dense_float32"]).min()
                assert float(change) == pytest.approx(100 * (1 - least), abs=0.06)


def test_what_zeros_save_is_held_against_the_model_as_published():
    columns = {"sparsity_target": [0.3, 0.5, 0.7], "bytes_total": [400.0, 300.0, 200.0], "published_dtype": "bfloat16"}
    for published, said in ((100.0, "less than any"), (500.0, "more than any"), (250.0, "undercut from 70 % on")):
        assert said in reach._against_published(pd.DataFrame({**columns, "bytes_dense_published": published}))
    rows = pd.DataFrame({**columns, "bytes_dense_published": 100.0})
    assert reach._against_published(rows.assign(published_dtype="float32")) == ""


def test_front_marks_the_size_of_dense_references_that_were_not_evaluated(run):
    (first, *_) = [data for data in load(run) if not data.pareto.empty and data.trained]
    known = first.table.assign(bytes_dense_q4=4 << 20, bytes_dense_int8=8 << 20)
    figure = pareto.draw(dataclasses.replace(first, table=known))
    assert figure is not None
    axes = figure.axes[0]
    said = [text.get_text() for text in axes.texts if "not evaluated here" in text.get_text()]
    assert sorted(said) == ["dense-int8: not evaluated here", "dense-q4: not evaluated here"]
    lines = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert {4.0, 8.0} <= set(lines)
    # One that was evaluated is a point, not a line.
    evaluated = first.pareto.assign(variant=first.pareto["variant"].where(~first.pareto["reference"], "dense-q4"))
    again = pareto.draw(dataclasses.replace(first, table=known, pareto=evaluated))
    assert again is not None
    assert [t.get_text() for t in again.axes[0].texts if "not evaluated" in t.get_text()] == [
        "dense-int8: not evaluated here"
    ]

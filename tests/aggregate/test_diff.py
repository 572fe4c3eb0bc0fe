"""Two runs side by side: the verdict on every figure, and what a person reads of it."""

from __future__ import annotations

import json
import math
import re

import pytest
from changed_runs import changed_copy, worse_likelihood
from typer.testing import CliRunner

import jobs.cli
from aggregate.api import aggregate_run
from aggregate.diff import diff_runs
from aggregate.diff_text import MOST_SAME, as_markdown
from aggregate.report import write_report
from aggregate.scan import read_plan
from aggregate.tables import read_table
from sparsehpc.core.layout import RunFolder

GRID = {"sparsities": ("0.3", "0.5"), "methods": ("magnitude", "random"), "windows": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory, synthetic) -> RunFolder:
    """A finished run of 9 cells; tests must not change it."""
    made = synthetic.write_run(tmp_path_factory.mktemp("diff") / "run", **GRID)
    aggregate_run(made, figures=False)
    return made


@pytest.fixture(scope="module")
def worse(run, tmp_path_factory, synthetic) -> RunFolder:
    """The same run with a worse perplexity in its 8 pruned cells: 8 figures worse, 46 the same."""
    return changed_copy(run, tmp_path_factory.mktemp("worse") / "run", synthetic, worse_likelihood)


@pytest.fixture(scope="module")
def call():
    jobs.cli._add_verbs()
    return lambda *words: CliRunner().invoke(jobs.cli.app, [str(word) for word in words])


def rows_under(text: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its two head lines."""
    part = text.partition(f"### {heading}\n")[2].partition("\n###")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_as_itself(run):
    found = diff_runs(run, run)
    assert found.exit_code == 0
    assert found.verdicts["same"] == len(found.lines) == 9 * 6
    assert found.changed == ("the plans hold the same cells",)
    json.dumps(found.as_json())
    assert "54 same" in as_markdown(found)


def test_worse_likelihood_is_seen_with_interval_and_other_machine_is_named(run, tmp_path, synthetic):
    other = changed_copy(run, tmp_path / "b", synthetic, worse_likelihood, {"cpu_model": "AMD EPYC 9654"})
    other.provenance.write_text(json.dumps({"sparsehpc": "0.2.0", "user": "ada"}))
    found = diff_runs(run, other)
    assert found.exit_code == 1
    worse = [line for line in found.lines if line.difference.verdict == "worse"]
    assert {line.metric for line in worse} == {"perplexity"}
    assert len(worse) == 8
    for line in worse:
        assert 0.5 < line.difference.lo < line.difference.value < line.difference.hi < 0.8
        assert line.difference.value == pytest.approx(math.log(line.second / line.first))
    back = diff_runs(other, run)
    assert back.verdicts["better"] == 8
    assert back.exit_code == 0
    text = as_markdown(found)
    assert "cpu\\_model: Intel Xeon Platinum 8481C -> AMD EPYC 9654" in text
    assert "sparsehpc: 0.1.0 -> 0.2.0" in text
    assert "ada" not in text


def test_what_cannot_be_compared_says_why(run, tmp_path, synthetic):
    other = changed_copy(run, tmp_path / "b", synthetic, lambda row, rows: rows, {"evaluation_digest": "ef" * 32})
    found = diff_runs(run, other)
    assert {line.difference.why for line in found.lines} == {"the evaluation text differs"}
    assert found.exit_code == 1
    cell = read_plan(other)["cell_id"][3].as_py()
    other.cell(cell).row.unlink()
    aggregate_run(other, figures=False)
    assert "it is missing in the second run" in {line.difference.why for line in diff_runs(run, other).lines}


def test_runs_without_a_common_cell(run, make_run):
    other = make_run(sparsities=("0.7",), windows=5, name="other")
    aggregate_run(other, figures=False)
    found = diff_runs(run, other)
    assert (len(found.only_first), len(found.only_second)) == (9, 3)
    assert found.exit_code == 1
    assert "No common cell" in as_markdown(found)


def test_a_run_that_lacks_cells_does_not_pass_and_one_with_more_does(run, make_run):
    more = make_run(sparsities=("0.1", "0.3", "0.5"), windows=5, name="more")
    fewer = make_run(sparsities=("0.1", "0.3"), windows=5, name="fewer")
    for folder in (more, fewer):
        aggregate_run(folder, figures=False)
    assert diff_runs(more, fewer).only_first
    assert diff_runs(more, fewer).exit_code == 1
    assert diff_runs(fewer, more).only_second
    assert diff_runs(fewer, more).exit_code == 0


def test_other_weights_zero_is_not_called_better_or_worse(run, tmp_path, synthetic):
    def fewer(row, rows):
        return [r._replace(numerator=r.numerator - 1) if r.metric == "params_nonzero" else r for r in rows]

    found = diff_runs(run, changed_copy(run, tmp_path / "b", synthetic, fewer))
    lines = [line for line in found.lines if line.metric == "params_nonzero"]
    assert {line.difference.why for line in lines} == {"another number of weights is zero"}


# --- what is read --------------------------------------------------------------------------------------------------


def test_figures_that_are_the_same_stand_beside_each_other_after_those_that_differ(run, worse):
    text = as_markdown(diff_runs(run, worse))
    assert text.index("### What differs") < text.index("### What is the same")
    assert {(row[1], row[5].partition(":")[0]) for row in rows_under(text, "What differs")} == {("perplexity", "worse")}
    same = rows_under(text, "What is the same")
    assert (len(rows_under(text, "What differs")), len(same)) == (8, 46)
    table = read_table(run, "global").to_pandas()
    row = table[(table["convention"] == "unique") & (table["method"] == "magnitude")].iloc[0]
    (agreement,) = [
        each for each in same if each[0].endswith("magnitude unstructured 30 % masked") and "top1" in each[1]
    ]
    shown = re.fullmatch(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", agreement[2])
    stored = [row[name] for name in ("top1_agreement", "top1_agreement_lo", "top1_agreement_hi")]
    assert [float(part) for part in shown.groups()] == pytest.approx(stored, abs=5e-4)
    assert agreement[3:] == [agreement[2], "0", "no measurable difference"]
    (weights,) = [each for each in same if each[0].endswith("random unstructured 50 % csr") and "params" in each[1]]
    count = table.loc[(table["method"] == "random") & (table["sparsity_target"] == 0.5), "params_nonzero"].iloc[0]
    assert weights[2:] == [f"{count:,.0f}", f"{count:,.0f}", "0", "equal"]


def test_many_that_are_the_same_are_cut_with_a_sentence_and_those_that_differ_never(run, worse):
    found = diff_runs(run, worse)
    text = as_markdown(found, 5, "elsewhere")
    assert rows_under(text, "What differs") == rows_under(as_markdown(found), "What differs")
    assert len(rows_under(text, "What is the same")) == 5
    assert "\n41 more figures are the same: elsewhere.\n" in text
    assert "more figures" not in as_markdown(found)
    assert "more figures" not in as_markdown(found, 46)
    whole = diff_runs(run, run)
    assert "What differs" not in as_markdown(whole)


def test_tables_line_up_on_a_terminal(run, worse):
    lines = [line for line in as_markdown(diff_runs(run, worse)).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines[:10]}) == len({len(line) for line in lines[10:]}) == 1


def test_the_verb_prints_a_screen_of_what_is_the_same_and_its_file_holds_all(call, run, worse, tmp_path):
    short = call("diff", run.root, worse.root)
    assert short.exit_code == 1
    assert len(rows_under(short.output, "What is the same")) == MOST_SAME
    assert f"{46 - MOST_SAME} more figures are the same: `--all` prints them, `--out FILE` writes them." in short.output
    whole = call("diff", run.root, worse.root, "--all").output
    assert len(rows_under(whole, "What is the same")) == 46
    out = tmp_path / "comparison.md"
    kept = call("diff", run.root, worse.root, "--out", out)
    assert f"{46 - MOST_SAME} more figures are the same: {out} holds all." in kept.output
    assert out.read_text(encoding="utf-8") == whole
    told = json.loads(call("diff", run.root, worse.root, "--json").output)
    assert len(told["figures"]) == 54
    assert told["figures"][6]["first_lo"] < told["figures"][6]["first"] < told["figures"][6]["first_hi"]
    assert told["figures"][0]["first_lo"] is None, "intervals are paired with dense, which has none"


def test_the_report_folds_what_is_the_same(run, worse, monkeypatch):
    monkeypatch.setattr("aggregate.report.draw_figures", lambda run: [])
    page = write_report(worse, run).read_text(encoding="utf-8")
    section = page.partition('id="comparison"')[2].partition("</section>")[0]
    differ, folded = section.split("<summary>Figures that are the same: 46</summary>")
    assert (differ.count("<td>worse</td>"), differ.count("<td>same</td>"), folded.count("<td>same</td>")) == (8, 0, 46)
    monkeypatch.setattr("aggregate.report.MOST_ROWS", 40)
    page = write_report(worse, run).read_text(encoding="utf-8")
    assert "6 more are the same: <code>sparsehpc diff --all</code>" in page

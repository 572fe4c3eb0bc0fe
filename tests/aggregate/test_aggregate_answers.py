"""Export, merge and advise: what a person pastes, joins and decides; and when two cells differ."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from changed_runs import changed_copy, worse_likelihood

from aggregate import compare
from aggregate.advise import UNTRAINED, Limits, advise, advise_all, runs_of
from aggregate.api import aggregate_run
from aggregate.compare import WindowSums, difference, exact, not_worse_than_best
from aggregate.describe import _pruning
from aggregate.export import export_table, interval_decimals, latex
from aggregate.merge import merge_runs
from aggregate.scan import read_plan, scan
from aggregate.tables import read_table
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.layout import RunFolder

GRID = {"sparsities": ("0.3", "0.5"), "methods": ("magnitude", "random"), "windows": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory, synthetic) -> RunFolder:
    """A finished run; tests must not change it."""
    made = synthetic.write_run(tmp_path_factory.mktemp("answers") / "run", **GRID)
    aggregate_run(made, figures=False)
    return made


# --- paired comparison ---------------------------------------------------------------------------------------------


def test_difference_of_the_same_is_the_same(run):
    sums = WindowSums(read_table(run, "windows").to_pandas())
    cell = read_plan(run)["cell_id"][1].as_py()
    found = difference("kl", sums.get(cell, "kl"), sums.get(cell, "kl"))
    assert (found.verdict, found.value) == ("same", 0.0)


def test_difference_is_paired_and_has_a_direction():
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 300, 40).astype(float)
    first = rng.gamma(2, 0.5, 40) * tokens
    # Windows differ by a lot, the second is worse in each by a little: only pairing sees it.
    second = first + 0.02 * tokens * rng.uniform(0.5, 1.5, 40)
    assert difference("kl", (first, tokens), (second, tokens)).verdict == "worse"
    assert difference("kl", (second, tokens), (first, tokens)).verdict == "better"
    assert difference("top1_agreement", (first, tokens), (second, tokens)).verdict == "better"
    noise = first + rng.normal(0, 0.5, 40) * tokens * 0.02
    assert difference("kl", (first, tokens), (noise, tokens)).verdict == "same"
    few = difference("kl", (first[:10], tokens[:10]), (second[:10], tokens[:10]))
    assert few.verdict == "not comparable"
    assert "10 windows" in few.why
    assert difference("kl", (first, tokens), (first, tokens + 1)).why == "the windows are not the same"
    assert difference("kl", None, (first, tokens)).verdict == "not comparable"
    tiny = difference("kl", (first, tokens), (first * (1 + 1e-8), tokens))
    assert (tiny.verdict, tiny.why) == ("same", "no measurable difference")


def test_exact_figures_have_no_tolerance_for_counts():
    assert exact("bytes_total", 10_000_000_000, 10_000_000_001).verdict == "worse"
    assert exact("bytes_total", 5, 5).verdict == "same"
    assert exact("bytes_ratio", 0.5, 0.5 + 1e-9).verdict == "same"
    assert exact("bytes_total", 5, math.nan).verdict == "not comparable"


def test_best_set_holds_what_cannot_be_told_apart(run):
    sums = WindowSums(read_table(run, "windows").to_pandas())
    table = read_table(run, "global").to_pandas().query("convention == 'unique' and sparsity_target == 0.5")
    best = not_worse_than_best("perplexity", zip(table["cell_id"], table["perplexity"], strict=True), sums)
    assert set(table.set_index("cell_id").loc[list(best), "method"]) == {"magnitude"}
    assert not_worse_than_best("seed", [("a", 1.0)], sums) == set()


def test_rounding_of_another_kernel_is_no_difference_in_nats():
    """The same weights as CSR: a divergence that differs in its sixth decimal is the same divergence."""
    rng = np.random.default_rng(0)
    tokens = np.full(40, 100.0)
    first = rng.gamma(2.0, 0.04, 40) * tokens
    rounded = first + tokens * (1.1e-6 + 1e-9 * rng.normal(size=40))
    found = difference("kl", (first, tokens), (rounded, tokens))
    assert found.lo > 0  # every window moved the same way, and yet
    assert (found.verdict, found.why) == ("same", "no measurable difference")
    assert difference("kl", (first, tokens), (first + tokens * 1e-4, tokens)).verdict == "worse"
    # Shares have no nats: one position in a million counts, if its interval says so.
    assert difference("top1_agreement", (first, tokens), (rounded, tokens)).verdict == "better"


# --- export --------------------------------------------------------------------------------------------------------


def test_markdown_table_has_units_intervals_bold_methods_and_citation(run):
    text = export_table(run)
    lines = text.splitlines()
    assert lines[0].startswith("| model | method | pattern | sparsity (%) |")
    assert "size" not in lines[0]
    assert "bytes total (MiB)" in lines[0]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert len([line for line in lines if line.startswith("| tiny")]) == 9
    table = read_table(run, "global").to_pandas().query("convention == 'unique'")
    row = table[
        (table["method"] == "magnitude") & (table["sparsity_target"] == 0.5) & (table["variant"] == "csr")
    ].iloc[0]
    line = next(line for line in lines if line.startswith("| tiny | magnitude") and "| 50 | csr |" in line)
    decimals = interval_decimals((row["perplexity_hi"] - row["perplexity_lo"]) / 2)
    assert f"**{row['perplexity']:.{decimals}f}** [{row['perplexity_lo']:.{decimals}f}," in line
    random_line = next(line for line in lines if "| random |" in line and "| 50 | csr |" in line)
    assert random_line.count("**") < line.count("**")
    assert "**Methods.** We evaluated tiny in float32, pruned by magnitude (unstructured) and random" in text
    assert "@software{sparsehpc," in text


def test_latex_table_is_booktabs_and_escaped(run):
    text = export_table(run, kind="latex", columns=["model", "top1_agreement", "perplexity"])
    assert text.count(r"\\") == 10
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrr}", r"(\%)", r"\textbf{"):
        assert word in text
    assert latex("a_b & c\\d~") == r"a\_b \& c\textbackslash{}d\textasciitilde{}"
    assert not re.search(r"(?<!\\)%", text.split("\n", 1)[1].split(r"\bottomrule")[0])


def test_latex_holds_notes_and_methods_that_can_be_pasted(run):
    text = export_table(run, kind="latex")
    below = text.split(r"\end{tabular}")[1]
    printed = [line for line in below.splitlines() if line and not line.startswith("%")]
    assert printed[0].startswith(r"{\footnotesize Brackets: 95 \% intervals")
    assert printed[1].startswith(r"\paragraph{Methods.} We evaluated tiny in float32")
    assert len(printed) == 2
    assert not re.search(r"(?<!\\)[%_]", "".join(printed).replace(r"\%", ""))
    # What is left as comments is the entry for a .bib file.
    assert all(line.startswith("% ") for line in below.splitlines() if line and line not in printed)


def test_headings_and_numbers_of_other_tables(run, make_run):
    head = export_table(run, table="groups").splitlines()[0]
    assert "zeros, group (%)" in head
    assert "whole model" not in head
    assert "zeros, whole model (%)" in export_table(run).splitlines()[0]
    other = make_run(
        name="whole", sparsities=("0.5", "0.6", "0.7"), methods=("wanda",), seeds=(1,), variants=("masked",), windows=20
    )
    aggregate_run(other, figures=False)
    lines = export_table(other, columns=["method", "calibration_windows", "calibration_seed"]).splitlines()
    assert {line for line in lines if line.startswith("| wanda")} == {"| wanda | 32 | 1 |"}
    columns = ["metric", "tolerance", "answer", "sparsity_within", "sparsity_beyond", "sparsity_estimate"]
    lines = export_table(other, table="tipping", columns=columns).splitlines()
    assert lines[2] == "| perplexity | 0.05 | below the first grid step | 0 | 50 |  |"
    assert read_table(other, "tipping")["sparsity_estimate"].to_pylist() == [None, None]
    written = export_table(other, kind="csv", table="tipping", columns=["answer", "sparsity_estimate"])
    assert written.splitlines()[1] == '"below the first grid step",'


def test_break_bounds_have_the_unit_of_the_break(make_run):
    run = make_run(
        sparsities=("0.05", *(f"0.{n}" for n in range(1, 8))), methods=("magnitude",), variants=("masked",), windows=40
    )
    aggregate_run(run, figures=False)
    columns = ["break_sparsity", "break_lo", "break_hi", "break_share_two_pieces"]
    text = export_table(run, table="tipping", columns=columns).splitlines()
    assert text[0] == "| break sparsity (%) | break lo (%) | break hi (%) | break share two pieces (%) |"
    place, low, high, share = (float(cell) for cell in text[2].strip("| ").split(" | "))
    assert 1 < low <= place <= high < 100
    assert 1 < share <= 100


def test_csv_and_parquet_hold_the_chosen_columns(run, tmp_path):
    text = export_table(run, kind="csv", columns=["cell_id", "kl", "kl_lo"], convention="study")
    assert text.splitlines()[0] == '"cell_id","kl","kl_lo"'
    assert len(text.splitlines()) == 10
    out = tmp_path / "x.parquet"
    assert export_table(run, kind="parquet", table="groups", out=out) == str(out)
    frame = pq.read_table(out).to_pandas()
    assert set(frame["convention"]) == {"unique"}
    for name in ("tipping", "costs", "windows", "pareto"):
        assert export_table(run, table=name).startswith("| model"), name


def test_no_format_holds_a_home_folder(make_run, synthetic, tmp_path):
    home = make_run({"/home/ada/models/opt": synthetic.TINY}, sparsities=("0.3",), windows=3)
    aggregate_run(home, figures=False)
    assert "/home/ada/models/opt" in (home.tables / "global.csv").read_text(), "the run's own tables stay as they are"
    for kind in ("markdown", "latex", "csv"):
        text = export_table(home, kind=kind)
        assert "/ada" not in text
        assert "models/opt" in text
    export_table(home, kind="parquet", out=tmp_path / "x.parquet")
    assert set(pq.read_table(tmp_path / "x.parquet")["model"].to_pylist()) == {"~/models/opt"}


def test_wrong_wishes_are_all_named_at_once(run, tmp_path):
    with pytest.raises(UserErrors) as caught:
        export_table(run, kind="latx", table="globl", convention="old")
    assert len(caught.value.problems) == 3
    assert "did you mean 'latex'" in str(caught.value)
    with pytest.raises(UserErrors, match="did you mean 'perplexity'"):
        export_table(run, columns=["perplexty"])
    with pytest.raises(UserErrors, match="--out FILE"):
        export_table(run, kind="parquet")


@pytest.mark.parametrize(("half", "decimals"), [(0.151, 2), (1.2, 1), (12.0, 0), (4e-4, 5), (0.0, 2), (math.inf, 2)])
def test_digits_follow_the_interval(half, decimals):
    assert interval_decimals(half) == decimals


# --- merge ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def halves(run, tmp_path) -> tuple[RunFolder, RunFolder]:
    """Two clusters' parts of one study: even and odd cells, the first cell in both."""
    parts = []
    for number in range(2):
        shutil.copytree(run.root, tmp_path / f"cluster{number}")
        part = RunFolder(tmp_path / f"cluster{number}")
        for index, cell in enumerate(read_plan(run)["cell_id"].to_pylist()):
            if index and index % 2 == number:
                shutil.rmtree(part.cell(cell).root)
        part.study.write_text(part.study.read_text() + f"[resources.cpu]\ncpus = {number + 1}\n")
        parts.append(part)
    return parts[0], parts[1]


def test_parts_of_a_study_join_to_the_whole(run, halves, tmp_path):
    before = {path: path.stat().st_mtime_ns for half in halves for path in half.root.rglob("*")}
    merged = merge_runs(halves, tmp_path / "merged")
    assert {path: path.stat().st_mtime_ns for half in halves for path in half.root.rglob("*")} == before
    assert merged.coverage.complete
    assert sum(merged.taken.values()) == 9
    assert merged.doubles == 1
    for name in ("global", "tensors", "windows"):
        assert read_table(merged.run, name).equals(read_table(run, name))
    assert len(json.loads(merged.run.provenance.read_text())["merged"]) == 2
    again = merge_runs(halves, tmp_path / "merged")
    assert again.coverage.complete


def test_merge_refuses_what_contradicts(run, halves, tmp_path, synthetic):
    def lost(row, rows):
        return [r._replace(numerator=r.numerator - 1) if r.metric == "params_nonzero" else r for r in rows]

    other = changed_copy(run, tmp_path / "b", synthetic, lost)
    with pytest.raises(UserErrors, match=r"contradict each other[\s\S]*params_nonzero is"):
        merge_runs([run, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    texts = changed_copy(run, tmp_path / "c", synthetic, lambda row, rows: rows, {"snapshot_digest": "00" * 32})
    with pytest.raises(UserErrors, match="snapshot_digest"):
        merge_runs([run, texts], tmp_path / "merged")
    behaviour = changed_copy(run, tmp_path / "d", synthetic, worse_likelihood)
    with pytest.raises(UserErrors, match="perplexity"):
        merge_runs([run, behaviour], tmp_path / "merged")
    halves[1].study.write_text('[study]\nname = "another"\n')
    with pytest.raises(UserErrors, match=r"\[study\] of its study differs"):
        merge_runs(halves, tmp_path / "merged")


def test_merge_needs_two_runs_and_a_place(run, halves, tmp_path):
    with pytest.raises(UserError, match="two different runs"):
        merge_runs([run, run], tmp_path / "m")
    with pytest.raises(UserError, match="one of the runs"):
        merge_runs(halves, halves[0].root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        merge_runs(halves, tmp_path / "full")


def test_a_damaged_shard_is_taken_from_the_other_run(run, halves, tmp_path):
    cell = read_plan(run)["cell_id"][0].as_py()
    path = halves[0].cell(cell).measurements
    path.write_bytes(path.read_bytes()[:-4])
    merged = merge_runs(halves, tmp_path / "merged")
    assert merged.coverage.complete
    assert merged.doubles == 0
    assert scan(merged.run, verify=True).complete


# --- advise --------------------------------------------------------------------------------------------------------


def test_advice_keeps_the_limits_by_the_bound_and_names_its_evidence(run):
    table = read_table(run, "global").to_pandas().query("convention == 'unique'")
    table["bound"] = table["perplexity_hi"].fillna(table["perplexity"]) / table["perplexity_dense"]
    # A limit between the estimate and the bound of one cell: the bound decides.
    cell = table.query("method == 'magnitude' and sparsity_target == 0.5 and variant == 'csr'").iloc[0]
    between = (cell["bound"] + cell["perplexity"] / cell["perplexity_dense"]) / 2 - 1
    (strict,) = advise(run, Limits.parse(f"+{100 * between:.9f}%"))
    assert cell["cell_id"] not in {choice.cell_id for choice in strict.qualifying}
    (found,) = advise(run, Limits.parse(f"+{100 * (cell['bound'] - 1) + 1e-6:.9f}%"))
    assert cell["cell_id"] in {choice.cell_id for choice in found.qualifying}
    best = found.qualifying[0]
    row = table[table["cell_id"] == best.cell_id].iloc[0]
    fitting = table[table["bound"] <= cell["bound"]]
    assert row["bytes_total"] == fitting["bytes_total"].min()
    assert best.cell_id in found.text()
    assert "MiB" in best.evidence
    json.dumps(found.as_json())


def test_nothing_qualifies_and_what_comes_closest(run):
    (found,) = advise(run, Limits.parse("+0.001%", max_mib=0.001))
    assert found.qualifying == ()
    assert found.closest is not None
    assert "nothing that was measured qualifies" in found.text()
    assert "size at most 0.001 MiB" in " ".join(found.closest.misses)
    (speed,) = advise(run, Limits.parse(min_speedup=1.2))
    assert speed.qualifying == ()
    assert "(not measured)" in speed.text()


def test_dense_qualifies_where_it_is_small_enough(run):
    (found,) = advise(run, Limits.parse("+0%"))
    assert any("dense" in choice.name for choice in found.qualifying)


def test_advice_judges_a_way_of_pruning_by_its_worst_calibration_seed(make_run):
    folder = make_run(name="seeded", sparsities=("0.3", "0.5"), methods=("wanda",), seeds=(0, 1, 2), windows=20)
    aggregate_run(folder, figures=False)
    cells = read_table(folder, "global").to_pandas()
    cells = cells[(cells["convention"] == "unique") & (cells["method"] == "wanda") & (cells["sparsity_target"] == 0.3)]
    ends = cells.groupby("variant")["perplexity_hi"].max() / cells["perplexity_dense"].iloc[0]
    worst = cells.loc[cells["perplexity_hi"].idxmax()]
    assert cells["perplexity_hi"].nunique() > 1
    for rise, fits in ((ends.max() - 1 + 1e-6, True), (ends.min() - 1 - 1e-6, False)):
        (found,) = advise(folder, Limits(max_perplexity=float(rise), relative_perplexity=True))
        named = {choice.cell_id: choice for choice in found.qualifying if choice.pruned}
        assert bool(set(named) & set(cells["cell_id"])) == fits
        if fits:
            assert "the worst of 3 calibration seeds" in named[worst["cell_id"]].evidence
            assert len(set(named) & set(cells["cell_id"])) == cells["variant"].nunique()


def test_nothing_pruned_is_advised_over_dense_unless_it_is_smaller(run):
    """Masked is as large as dense and loses something: dense comes first, and alternatives are smaller ones."""
    table = read_table(run, "global").to_pandas().query("convention == 'unique'").set_index("cell_id")
    dense = table.query("method == 'none'").iloc[0]
    (found,) = advise(run, Limits.parse("+1000000%"))
    smaller = table[table["bytes_total"] < dense["bytes_total"]]
    for choice in found.qualifying:
        assert choice.gains == (choice.cell_id in smaller.index or table.loc[choice.cell_id, "method"] == "none")
    gains = [choice.gains for choice in found.qualifying]
    assert gains == sorted(gains, reverse=True)
    (strict,) = advise(run, Limits.parse("+0%"))
    assert strict.qualifying[0].cell_id == dense.name
    assert "it is not pruned: nothing pruned that was measured qualifies and is smaller" in strict.text()
    masked = table.query("variant == 'masked' and sparsity_target == 0.3 and method == 'magnitude'").iloc[0]
    limit = masked["perplexity_hi"] / masked["perplexity_dense"] - 1 + 1e-9
    (near,) = advise(run, Limits.parse(f"+{100 * limit:.9f}%"))
    ids = [choice.cell_id for choice in near.qualifying]
    assert ids.index(dense.name) < ids.index(masked.name)
    assert "masked" not in near.text()


def test_untrained_models_get_no_advice_on_behaviour(make_run, synthetic):
    run = make_run({"random:x": dataclasses.replace(synthetic.TINY, trained=False)}, sparsities=("0.3",), windows=4)
    aggregate_run(run, figures=False)
    (found,) = advise(run, Limits.parse("+5%"))
    assert found.qualifying == ()
    assert found.warning == UNTRAINED
    (size,) = advise(run, Limits.parse(max_mib=100))
    assert size.qualifying


def test_limits_are_checked_at_once():
    with pytest.raises(UserErrors) as caught:
        Limits.parse("5 percent", max_mib=-1, min_agreement=90, min_speedup=0)
    assert len(caught.value.problems) == 4
    with pytest.raises(UserErrors, match="no limit was given"):
        Limits.parse()
    assert Limits.parse("+5%").max_perplexity == 0.05
    assert Limits.parse("30").relative_perplexity is False
    with pytest.raises(UserErrors):
        Limits.parse("+%")


def test_advice_by_model_name_looks_into_all_runs(run):
    found = runs_of("tiny", run.root.parent)
    assert found == [run]
    assert runs_of("nothing", run.root.parent) == []
    assert len(advise_all(found, Limits.parse("+5%"), "tiny")) == 1
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        advise(run, Limits.parse("+5%"), "tinny")


def test_directions_are_of_known_figures(run):
    columns = set(read_table(run, "global").column_names) | set(read_table(run, "costs").column_names)
    assert set(compare.BETTER) <= columns


def test_the_methods_paragraph_names_what_ran_and_no_product_of_lists():
    ran = [("magnitude", 0.2, "masked"), ("magnitude", 0.3, "masked"), ("magnitude", 0.3, "csr")]
    ran += [("random", 0.2, "masked"), ("random", 0.3, "masked"), ("wanda", 0.5, "bitmap")]
    same = {"pattern": "unstructured", "allocation": "default", "refit": False, "true_sequential": None}
    rows = [
        {"method": method, "sparsity_target": sparsity, "variant": variant, "targets": "attention+mlp", **same}
        for method, sparsity, variant in ran
    ]
    assert _pruning(pd.DataFrame(rows)) == (
        "pruned by magnitude (unstructured) and random (unstructured) at 20 % and 30 % of the prunable weights "
        "(attention+mlp), stored as masked; by magnitude (unstructured) at 30 % of the prunable weights "
        "(attention+mlp), stored as csr; by wanda (unstructured) at 50 % of the prunable weights (attention+mlp), "
        "stored as bitmap"
    )

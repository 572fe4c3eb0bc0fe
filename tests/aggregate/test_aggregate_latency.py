"""Times in the tables: one table of their own, by machine, with sentences, figures and advice computed from it."""

from __future__ import annotations

import dataclasses
import json
import re

import pandas as pd
import pytest

from aggregate.advise import Limits, advise
from aggregate.api import aggregate_run
from aggregate.diff import diff_runs
from aggregate.figures import draw_figures
from aggregate.figures.data import load
from aggregate.figures.style import number
from aggregate.report import write_report
from aggregate.report.speed import break_evens, headlines, speed_rows
from aggregate.tables import read_latency, read_table
from sparsehpc.core import shards
from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import Latency

TIMING = Latency(prompt_tokens=16, new_tokens=32, repeats=5, threads=2)
DENSE_S = 0.020
#: Milliseconds a token by variant and sparsity: bitmap is faster from 30 % on, csr from 50 % on; at 10 % neither.
TIMES = {
    "bitmap": {"0.1": 0.021, "0.3": 0.016, "0.5": 0.0125},
    "csr": {"0.1": 0.050, "0.3": 0.030, "0.5": 0.019},
    "masked": {"0.1": 0.018, "0.3": 0.022, "0.5": 0.019},
}


def timing_rows(cell, cpu):
    s = 0.0 if cell.pruning.is_dense else float(cell.pruning.fraction)
    token_s = DENSE_S if cell.is_dense else TIMES[cell.variant][cell.pruning.sparsity]
    token_s /= {"old": 1, "new": 2}[cpu]
    dense_s = DENSE_S / {"old": 1, "new": 2}[cpu]
    per_weight = {"dense": 4, "masked": 4, "bitmap": 4 * (1 - s) + 1 / 8, "csr": 8 * (1 - s)}[cell.variant]
    values = {
        "decode_s_per_token": token_s,
        "decode_p90_s_per_token": 1.1 * token_s,
        "decode_s_per_token_dense": dense_s,
        "decode_p90_s_per_token_dense": 1.1 * dense_s,
        "speedup": dense_s / token_s,
        "speedup_least": 0.98 * dense_s / token_s,
        "speedup_most": 1.02 * dense_s / token_s,
        "prompt_s": 3 * token_s,
        "prompt_p90_s": 4 * token_s,
        "prompt_s_dense": 3 * dense_s,
        "prompt_p90_s_dense": 4 * dense_s,
        "prompt_speedup": dense_s / token_s,
        "effective_gb_per_s": 20.0,
        "byte_limit_s_per_token": 0.9 * token_s,
        "byte_limit_share": 0.9,
        "byte_limit_speedup": 4 / per_weight,
        "ceiling_speedup": 1 / (0.2 + 0.8 * per_weight / 4),
        "flop_promise_speedup": 1 / (0.2 + 0.8 * (1 - s)),
        "streamed_bytes": round(1e6 * (0.8 + 0.8 * per_weight)),
        "streamed_bytes_dense": 4_000_000,
        "pruned_bytes": round(0.8e6 * per_weight),
        "pruned_bytes_dense": 3_200_000,
        "resident_bytes": 2**22,
        "logits_error": 1e-6,
    }
    units = {"decode_s_per_token": "s"}
    return [Measurement("model", "model", k, v, reduction="mean", unit=units.get(k, "1")) for k, v in values.items()]


def write_timings(run, cells, synthetic, cpus=("old",)):
    """Timed cells of a run; with several machines each cell on the next one."""
    timed = [dataclasses.replace(cell, latency=TIMING) for cell in cells]
    synthetic.write_plan(run, [*cells, *timed])
    for place, cell in enumerate(timed):
        cpu = cpus[place % len(cpus)]
        row = synthetic.cell_row(cell, synthetic.SMOLLM) | {
            "cpu_model": cpu,
            "kernel": {"masked": "dense"}.get(cell.variant, cell.variant),
            "notes": json.dumps({"isa": "avx2", "decoder": "lean"}),
        }
        shards.write_shard(run.cell(cell.cell_id), row, timing_rows(cell, cpu))
    return timed


GRID = {"sparsities": ("0.1", "0.3", "0.5"), "variants": ("bitmap", "csr")}


def make(root, synthetic, cpus=("old",)):
    run = synthetic.write_run(root, {"smol": synthetic.SMOLLM}, **GRID)
    write_timings(run, synthetic.cells_of("smol", **GRID), synthetic, cpus)
    aggregate_run(run, figures=False)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, synthetic):
    """One trained model: dense, bitmap and CSR, timed on one machine."""
    return make(tmp_path_factory.mktemp("timed") / "run", synthetic)


def test_times_stand_in_one_table_and_no_other_changes(tmp_path, synthetic):
    run = synthetic.write_run(tmp_path / "run", {"smol": synthetic.TINY}, **GRID)
    aggregate_run(run, figures=False)
    before = {path.name: path.read_bytes() for path in run.tables.glob("*.parquet")}
    write_timings(run, synthetic.cells_of("smol", **GRID), synthetic)
    aggregate_run(run, figures=False)
    after = {path.name: path.read_bytes() for path in run.tables.glob("*.parquet")}
    assert {name for name in after if before.get(name) != after[name]} == {"latency.parquet", "coverage.parquet"}
    coverage = read_table(run, "coverage")
    assert coverage["kind"].to_pylist() == ["behaviour"] * 7 + ["latency"] * 7
    # Timings that are taken out again take their table with them.
    synthetic.write_plan(run, synthetic.cells_of("smol", **GRID))
    aggregate_run(run, figures=False)
    assert not (run.tables / "latency.parquet").exists()
    assert read_latency(run) is None


def test_rows_hold_times_machine_and_what_the_weights_came_to(run):
    table = read_latency(run)
    whole = read_table(run, "global").to_pandas()
    whole = whole[whole["convention"] != "study"].set_index("cell_id")
    assert table["variant"].tolist() == ["dense", *(["bitmap", "csr"] * 3)]
    assert set(table["cpu_model"]) == {"old"}
    assert set(table["threads"]) == {2}
    assert set(table["isa"]) == {"avx2"}
    assert set(table["new_tokens"]) == {32}
    for _, row in table.iterrows():
        twin = whole.loc[row["behaviour_cell_id"]]
        assert row["variant"] == twin["variant"]
        assert row["perplexity"] == twin["perplexity"]
        assert row["bytes_ratio"] == twin["bytes_ratio"]
    assert table["speedup"].tolist() == pytest.approx([1, 20 / 21, 0.4, 1.25, 2 / 3, 1.6, 20 / 19])


def test_the_front_is_of_time_and_loss(run):
    table = read_latency(run)
    front = set(zip(table.loc[table["on_front_perplexity"], "variant"], table["sparsity_target"], strict=False))
    known = table[["decode_s_per_token", "perplexity"]].to_numpy()
    on = [not any((other <= one).all() and (other < one).any() for other in known) for one in known]
    assert table["on_front_perplexity"].tolist() == on
    assert ("dense", 0.0) in front


def test_sentences_are_computed(run):
    (data,) = load(run)
    (headline,) = headlines(data)
    assert re.match(
        r"At 30 %, stored as bitmap, it decodes 1\.25 x as fast as the same model on our dense kernels "
        r"\(16\.0 against 20\.0 ms a token, rounds from 1\.2[23] to 1\.2[78] x\)",
        headline,
    )
    assert "old, 2 threads, prompt of 16 tokens, 32 more" in headline
    (break_even,) = break_evens(data)
    assert "as bitmap smaller from 10 %, faster from 30 %" in break_even
    # CSR at 50 % is exactly as large as dense, so never smaller; its slowest round at 50 % is still faster.
    assert "as csr smaller at none, faster from 50 %" in break_even


def test_machines_are_never_mixed(tmp_path, synthetic):
    run = make(tmp_path / "run", synthetic, cpus=("old", "new"))
    (data,) = load(run)
    assert len(list(headlines(data))) == 2
    table = read_latency(run)
    for _, rows in table.groupby("cpu_model"):
        known = rows[["decode_s_per_token", "perplexity"]].to_numpy()
        on = [not any((other <= one).all() and (other < one).any() for other in known) for one in known]
        assert rows["on_front_perplexity"].tolist() == on


def test_what_the_same_work_strays_by_is_no_difference(tmp_path, synthetic):
    """Masked weights are dense to the kernel: 20 / 18 there and back is what memory alone can do."""
    grid = {"sparsities": ("0.1", "0.3", "0.5"), "variants": ("masked", "bitmap", "csr")}
    run = synthetic.write_run(tmp_path / "run", {"smol": synthetic.SMOLLM}, **grid)
    write_timings(run, synthetic.cells_of("smol", **grid), synthetic)
    aggregate_run(run, figures=False)
    assert read_latency(run)["speedup_floor"].unique().tolist() == pytest.approx([20 / 18])
    (data,) = load(run)
    (break_even,) = break_evens(data)
    assert "stray from it by up to 1.11 x" in break_even
    # The slowest rounds at 10 and 50 % were faster than dense, by less than that.
    assert "as masked smaller at none, faster at none" in break_even
    assert "as bitmap smaller from 10 %, faster from 30 %" in break_even
    assert "as csr smaller at none, faster at none" in break_even


def test_a_gain_within_the_floor_is_called_none(run):
    (data,) = load(run)
    latency = data.latency.assign(speedup_floor=1.3)
    (headline,) = headlines(dataclasses.replace(data, latency=latency))
    assert "No measurable difference: cells that do the same work as dense stray from it by up to 1.3" in headline


def test_narrower_values_stand_beside_their_dense_twin_and_not_in_the_headline(run):
    (data,) = load(run)
    latency = data.latency.copy()
    twin = latency[latency["method"] == "none"].head(1).assign(variant="dense-q4", speedup=1.1)
    latency["variant"] = latency["variant"].replace("bitmap", "bitmap-q4")
    timed = dataclasses.replace(data, latency=pd.concat([latency, twin], ignore_index=True))
    first, second = headlines(timed)
    assert first.startswith("At 30 %, stored as csr, it decodes 0.667 x as fast")
    assert second == (
        "At 30 %, stored as bitmap-q4, it decodes 1.25 x as fast as dense float32; dense-q4, not pruned, 1.10 x: only "
        "what lies between is the zeros'."
    )


def test_figures_and_page_show_them(run):
    names = {figure.name for figure in draw_figures(run)}
    assert {"speed", "time-pareto"} <= names
    page = write_report(run).read_text(encoding="utf-8")
    assert "1.25 x as fast as the same model" in page
    assert 'aria-label="Speed of every timed cell"' in page
    assert "x as fast as dense" in page
    assert len(speed_rows(read_latency(run))) == 7
    svg = next(run.figures.glob("speed-*.svg")).read_bytes()
    (run.tables / "latency.parquet").touch()
    draw_figures(run)
    assert next(run.figures.glob("speed-*.svg")).read_bytes() == svg


def test_without_timings_the_page_has_no_such_section(make_run, synthetic):
    run = make_run({"smol": synthetic.TINY})
    aggregate_run(run, figures=False)
    names = {figure.name for figure in draw_figures(run)}
    assert not {"speed", "time-pareto"} & names
    page = write_report(run).read_text(encoding="utf-8")
    assert 'id="speed"' not in page
    assert "x as fast as dense" not in page


def test_advice_knows_the_speed(run):
    (found,) = advise(run, Limits.parse(min_speedup=1.2))
    assert found.qualifying[0].name.endswith("50 % bitmap")
    assert {choice.name.rsplit(" ", 1)[1] for choice in found.qualifying} == {"bitmap"}
    assert "1.60 x the speed of dense" in found.qualifying[0].evidence
    (found,) = advise(run, Limits.parse(min_speedup=3))
    assert found.closest is not None
    assert found.closest.misses == ("speed of at least 3 x dense",)


@pytest.mark.browser
def test_speed_is_a_view_between_bytes_and_promise(open_report, run):
    page = open_report(write_report(run))
    assert page.locator("#speed-view").is_visible()
    traces = {
        trace["name"]: trace
        for trace in page.evaluate(
            "document.getElementById('view-speed').data.map(t => ({name: t.name, x: t.x, y: t.y, e: t.error_y}))"
        )
    }
    bitmap = traces["bitmap, magnitude, unstructured: measured"]
    assert bitmap["x"] == [10, 30, 50]
    assert bitmap["y"] == pytest.approx([DENSE_S / t for t in TIMES["bitmap"].values()], rel=1e-4)
    assert bitmap["e"]["array"] == pytest.approx([0.02 * y for y in bitmap["y"]], rel=1e-3)
    allowed = traces["bitmap, magnitude, unstructured: bytes would allow"]["y"]
    assert allowed == pytest.approx([1 / (0.2 + 0.8 * (1 - s + 1 / 32)) for s in (0.1, 0.3, 0.5)], rel=1e-4)
    promise = next(trace for name, trace in traces.items() if name.startswith("operations promise"))
    assert promise["y"] == pytest.approx([1 / (0.2 + 0.8 * (1 - s)) for s in (0.1, 0.3, 0.5)], rel=1e-4)
    assert "old, 2 threads" in page.locator("#view-speed-note").inner_text()
    page.select_option("#variant", "csr")
    names = page.evaluate("document.getElementById('view-speed').data.map(t => t.name)")
    assert not [name for name in names if name.startswith("bitmap")]
    # The front against measured time, with dense on it as a reference.
    page.select_option("#variant", "")
    page.select_option("#cost", "time")
    assert "cost=time" in page.url
    pareto = "document.getElementById('view-pareto')"
    assert page.evaluate(f"{pareto}.layout.xaxis.title.text").startswith("ms per decoded token")
    front = page.evaluate(f"{pareto}.data.find(t => t.name === 'front').x")
    assert front == sorted(front)
    assert "dense" in page.evaluate(f"{pareto}.data.map(t => t.name)")
    page.select_option("#loss", "top1_agreement")
    assert page.evaluate(f"{pareto}.layout.title.text").replace("<br>", " ") == "Top-1 agreement against time per token"


def test_timed_cells_of_two_runs_get_a_verdict(tmp_path, run, synthetic):
    def timings(other):
        found = diff_runs(run, other)
        return [line for line in found.lines if line.metric == "speedup"], found

    again = make(tmp_path / "again", synthetic)
    lines, found = timings(again)
    assert len(lines) == 7
    assert {(line.difference.verdict, line.difference.why) for line in lines} == {("same", "their rounds overlap")}
    assert found.exit_code == 0
    slower = make(tmp_path / "slower", synthetic)
    for cell in synthetic.cells_of("smol", **GRID):
        timed = dataclasses.replace(cell, latency=TIMING)
        if cell.variant == "bitmap" and cell.pruning.sparsity == "0.5":
            row = shards.read_row(slower.cell(timed.cell_id), timed.cell_id)
            rows = [
                one._replace(numerator=0.5 * one.numerator) if one.metric.startswith("speedup") else one
                for one in timing_rows(timed, "old")
            ]
            shards.write_shard(slower.cell(timed.cell_id), row, rows)
    aggregate_run(slower, figures=False)
    lines, found = timings(slower)
    (worse,) = [line for line in lines if line.difference.verdict != "same"]
    assert worse.difference.verdict == "worse"
    assert worse.difference.value == pytest.approx(-0.5 * DENSE_S / TIMES["bitmap"]["0.5"])
    assert worse.what.endswith("bitmap latency")
    assert found.exit_code == 1
    lines, _ = timings(make(tmp_path / "new", synthetic, ("new",)))
    assert {line.difference.why for line in lines} == {"times of two machines do not compare"}
    text = write_report(slower, run).read_text(encoding="utf-8")
    assert '<th scope="col">difference</th>' in text
    assert f"<td>{number(-0.5 * DENSE_S / TIMES['bitmap']['0.5'], 3)}</td><td>worse</td>" in text

"""Pages of benchmarks show what the benchmarks wrote, and that meets what was asked of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs.bench import read_results
from jobs.bench._markdown import as_markdown
from sparsehpc.pruning.base import METHODS

RESULTS = Path(__file__).parents[2] / "docs" / "results"
#: At least so many times as fast as the usual implementation.
GOALS = {"magnitude mask": 20, "sparsegpt": 1.5, "wanda": 1.5}
GIB_ALLOWED = 2


def rows(name):
    return json.loads((RESULTS / "benchmarks" / f"{name}.json").read_text())["rows"]


def lines(page="benchmarks-pruning"):
    text = (RESULTS / f"{page}.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text if line.startswith("|")]


def test_times_are_those_of_the_file_and_reach_their_goals():
    shown = {line[0]: line[1:] for line in lines()}
    for row in rows("pruning"):
        baseline, ours, theirs, ratio = shown[row["work"]]
        assert baseline == row["baseline"]
        assert ours.split()[0] == f"{row['seconds']:.3f}"
        assert theirs.split()[0] == f"{row['baseline_seconds']:.3f}"
        assert ratio == f"{row['ratio']:.3g}" or ratio == f"{row['ratio']:.2f}"
        goal = next(goal for work, goal in GOALS.items() if row["work"].startswith(work))
        assert row["ratio"] >= goal
        if "relative_error" in row:
            assert abs(row["relative_error"] / row["baseline_relative_error"] - 1) < 0.001
        assert row.get("mask_bits_different", 0) == 0
        assert row.get("extra_bytes_per_weight", 0) < 1.2


def test_phases_of_every_method_are_those_of_the_file():
    shown = {(line[0], line[1]): line[2:] for line in lines() if len(line) == 7}
    phases = ("load_s", "calibrate_s", "select_s", "encode_s", "evaluate_s")
    models = [row for row in rows("pruning-models") if "calibrate_s" in row]
    assert {name for name, _ in METHODS} <= {row["work"].split()[1] for row in models}
    for row in models:
        method = row["work"].split(" ", 1)[1].removesuffix(" 50 %")
        assert shown[method, row["params"]["pattern"]] == [f"{row[phase]:.1f}" for phase in phases]


def test_memory_is_that_of_the_file_and_stays_below_two_gibibytes():
    shown = {line[0]: line[1:] for line in lines()}
    for row in rows("memory"):
        method = row["work"].split()[0]
        assert shown[method] == [
            f"{row['model_gib']:.3f}",
            f"{row['peak_rss_gib']:.3f}",
            f"{row['predicted_gib']:.3f}",
            f"{row['peak_rss_gib'] / row['predicted_gib']:.2f}",
        ]
        assert row["model_gib"] >= 6
        assert row["peak_rss_gib"] < GIB_ALLOWED
        assert row["zeros"] == row["prunable"] // 2


def test_the_cluster_page_shows_its_files_and_they_reach_their_goals():
    shown = {line[0]: line[1:] for line in lines("benchmarks-cluster")}
    [dispatch], [plan] = rows("dispatch"), rows("plan")
    ours, theirs, ratio = (dispatch["ours_total_s"], dispatch["submitit_total_s"], dispatch["ratio"])
    assert shown[dispatch["work"]] == [f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.3g}"]
    assert dispatch["work"].startswith("10000 no-op cells")
    assert ratio >= 1 / 1.2
    size, seconds, mib = plan["plan_bytes"] / 1e6, plan["seconds"], plan["peak_rss_mib"]
    assert shown[plan["work"]] == [f"{seconds:.2f}", f"{mib:.0f}", f"{size:.1f}"]
    assert (seconds < 10, mib < 1024) == (True, True)
    assert int(plan["work"].split()[-2]) >= 100_000
    [status] = rows("status")
    figures = (f"{status['seconds']:.2f}", str(status["scheduler_calls"]), f"{status['peak_rss_mib']:.0f}")
    assert shown[status["work"]] == [*figures]
    assert status["work"].startswith("status of 10000 cells")
    assert (status["seconds_high"] < 2, status["scheduler_calls"] <= 10) == (True, True)


KERNEL_FILES = ("kernels-pythia-410m", "kernels-opt-125m", "kernels-many-tokens", "decode-smollm2-135m", "source")


@pytest.mark.parametrize("name", KERNEL_FILES)
def test_the_kernel_page_shows_what_its_files_say_and_how_far_goals_are(name):
    page = (RESULTS / "benchmarks-kernels.md").read_text()
    printed = as_markdown([read_results(RESULTS / "benchmarks" / f"{name}.json")])
    assert printed.count("\n| ") >= 2
    # A table stands there whole, in one piece.
    for table in printed.strip().split("\n\n"):
        assert table in page


def test_pruned_codes_are_exact_and_smaller_than_the_file_they_come_from():
    found = {row["sparsity"]: row for row in rows("source")}
    for sparsity, bits in ((0.3, 4.8), (0.5, 4.0), (0.7, 3.2)):
        row = found[sparsity]
        assert row["bit_exact"]
        assert row["bytes"] < row["baseline_bytes"]
        assert row["baseline_bits_per_weight"] == 5
        # Row offsets and whole bytes of codes in every row come on top.
        assert row["bits_per_weight"] == pytest.approx(bits, abs=0.1)


def test_the_aggregate_page_shows_its_file_and_it_reaches_its_goals():
    from jobs.bench import read_results
    from jobs.bench._markdown import as_markdown

    result = read_results(RESULTS / "benchmarks" / "aggregate.json")
    assert as_markdown([result]).strip() in (RESULTS / "benchmarks-aggregate.md").read_text()
    for source in ("shards", "compacted"):
        against = {row["baseline"].split()[0]: row for row in result["rows"] if row["work"].endswith(source)}
        assert set(against) == {"pandas", "polars", "duckdb"}
        assert all(row["work"].startswith("50,000,000 rows in 10,000 shards") for row in against.values())
        assert against["pandas"]["ratio"] > 1
        assert min(row["ratio"] for row in against.values()) >= 1 / 1.3
        assert max(row["ours_peak_gib"] for row in against.values()) < GIB_ALLOWED


def test_the_table_of_masks_is_what_the_benchmark_counted():
    page = (RESULTS.parent / "calibration.md").read_text()
    moved: dict[str, list[int]] = {}
    for row in rows("masks"):
        moved.setdefault(row["work"].partition(":")[0], []).append(sum(row["mask_bits_different"]))
        bits = row["mask_bits"]
        name = row["work"].partition(":")[0]
        assert re.search(rf"^\| {name}( \(attention\))? \| [^|]* \| {bits:,} \|", page, re.M), name
    assert len(moved) == 8
    for name, (threads, batch, order) in moved.items():
        [line] = re.findall(rf"^\| {name}(?: \(attention\))? \| .*$", page, re.M)
        said = [int(cell.split()[0].replace(",", "")) for cell in line.strip("| ").split(" | ")[3:]]
        assert said == [threads, batch, order], name


def test_what_the_byte_limit_would_reach_is_what_the_files_say():
    page = (RESULTS / "benchmarks-kernels.md").read_text()
    for name, label in (
        ("kernels-pythia-410m", "pythia-410m, two threads"),
        ("kernels-opt-125m", "opt-125m, two threads"),
        ("kernels-opt-125m-1-thread", "opt-125m, one thread"),
    ):
        at = {(row["work"], row["baseline"], row["sparsity"]): row["ratio"] for row in rows(name)}
        for work, against in (
            ("gemv auto", "best dense"),
            ("gemv auto", "torch CSR"),
            ("gemv bfloat16 auto", "best dense"),
        ):
            cells = [f"{at[work, against, s] / at[work, 'byte limit', s]:.2f}" for s in (0.3, 0.5, 0.7, 0.9)]
            # The byte limit would be ... times as fast.
            assert f"| {label}: {work} | {against} | {' | '.join(cells)} |" in page


def test_expected_memory_was_within_a_quarter_of_the_peak():
    assert all(abs(row["peak_rss_gib"] / row["predicted_gib"] - 1) <= 0.25 for row in rows("memory"))

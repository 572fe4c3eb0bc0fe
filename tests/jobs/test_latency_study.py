"""Studies that time decoding: what is planned, what jobs ask for, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from aggregate.api import aggregate_run
from aggregate.diff import diff_runs
from aggregate.export import export_table
from aggregate.merge import merge_runs
from jobs.cell import CellJob, CellsFailed
from jobs.extend import extra_cells
from jobs.pack import packs
from jobs.plan import Plan, make_plan
from jobs.plan_file import planned_ids, read_plan
from jobs.price import load_prices
from jobs.propose import class_totals, make_arrays, price_warnings
from jobs.refine import Wish, refine_here
from jobs.run import run_study
from jobs.spec import LatencyTable
from jobs.study import parse_study
from jobs.threads import pinned
from slurm.limits import ClusterLimits
from slurm.profile import Job, Profile
from slurm.sbatch import sbatch_text
from sparsehpc.core.errors import UserErrors
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import shard_state
from sparsehpc.core.spec import Cell, Latency

from .conftest import TINY, write_study

HEAD = '[study]\nname = "p"\nseed = 718\n'
MODELS = '[[models]]\nid = "random:opt-125m"\n[[models]]\nid = "random:pythia-70m"\n'
GRID = (
    '[grid]\nmethods = ["magnitude", "wanda"]\nsparsities = [0.3, 0.5]\nvariants = ["masked", "bitmap", "dense-int8"]\n'
)
TEXT = (
    '[evaluation]\ncorpus = "samples"\nwindows = 40\nwindow_tokens = 512\n'
    '[calibration]\ncorpus = "python-docs"\nwindows = 4\nwindow_tokens = 512\nseeds = [0, 3]\n'
)
CLASS = "[resources.cpu]\ncpus = 2\nmemory_gib = 4\nminutes = 20\n"
LATENCY = "[latency]\nprompt_tokens = 8\nnew_tokens = 4\nrepeats = 2\n"


def plan_of(latency: str = LATENCY, resources: str = CLASS, models: str = MODELS) -> Plan:
    return make_plan(parse_study(HEAD + models + GRID + TEXT + latency + resources, Path("p.toml")))


def test_timing_leaves_the_cells_of_behaviour_as_they_are() -> None:
    without, with_ = plan_of(""), plan_of()
    kinds = [cell.kind for cell in with_.cells]
    count = len(without.cells)
    assert [cell.cell_id for cell in with_.cells[:count]] == [cell.cell_id for cell in without.cells]
    assert set(kinds[:count]) == {"behaviour"}
    assert set(kinds[count:]) == {"latency"}
    first = with_.cells[count]
    assert first.latency == Latency(prompt_tokens=8, new_tokens=4, repeats=2, threads=2)
    assert dataclasses.replace(first, latency=None).cell_id == without.cells[0].cell_id
    assert Cell.from_json(first.to_json()) == first
    assert len({cell.cell_id for cell in with_.cells}) == len(with_.cells)


def test_of_several_calibration_seeds_one_is_timed() -> None:
    timed = [cell for cell in plan_of().cells if cell.latency]
    # Per model: dense, dense-int8; two methods at two sparsities in two formats.
    assert len(timed) == 2 * (2 + 2 * 2 * 2)
    assert {cell.pruning.calibration.seed for cell in timed if cell.pruning.calibration} == {0}


def test_gpus_are_not_timed_and_the_plan_says_so() -> None:
    plan = plan_of(resources=CLASS + "gpus = 1\n")
    assert not any(cell.latency for cell in plan.cells)
    assert "decoding is timed on CPUs only" in {entry.reason for entry in plan.dropped}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[latency]\nrepeats = 1\n", "latency.repeats is 1; legal: greater than or equal to 2"),
        ("[latency]\nthreads = 4\n", "latency.threads is 4; legal: at most 2, the cpus of resources.cpu"),
        ("[latency]\nnew_token = 4\n", "latency: unknown key 'new_token'; did you mean 'new_tokens'"),
        ("[latency]\nprompt_tokens = 2040\n", "legal: together at most 2048, which is what models[1]"),
    ],
)
def test_errors_name_the_key_and_what_is_legal(table: str, problem: str) -> None:
    with pytest.raises(UserErrors) as caught:
        plan_of(table)
    assert any(problem in found for found in caught.value.problems), caught.value.problems


def test_without_threads_the_class_decides() -> None:
    assert LatencyTable().of(6).threads == 6
    assert LatencyTable(threads=3).of(6).threads == 3


def test_timings_of_a_model_share_one_job_of_their_own() -> None:
    plan = plan_of()
    jobs = packs(plan.cells, 3)
    timings = [job for job in jobs if job[0].latency]
    assert [len(job) for job in timings] == [10, 10]
    assert all(len({cell.kind for cell in job}) == 1 for job in jobs)
    assert jobs[-2:] == timings


def arrays_of(plan: Plan, node_cpus: int) -> list[Any]:
    profile = Profile(job=Job(node_cpus=node_cpus))
    prices = load_prices(plan.study, RunFolder(Path("nowhere/run")))
    return make_arrays(plan.cells, plan.study.resources, profile, ClusterLimits(), None, prices)[0]


def test_timings_have_a_node_to_themselves_and_pay_for_it() -> None:
    arrays = arrays_of(plan_of(), 128)
    behaviour, timing = arrays
    assert (behaviour.resources.exclusive, timing.resources.exclusive) == (False, True)
    assert len(timing.tasks) == 2  # a job a model
    assert timing.hours() == pytest.approx(128 * timing.minutes / 60)
    assert behaviour.hours() == pytest.approx(2 * behaviour.minutes / 60)
    assert [row[0] for row in class_totals(arrays)] == ["cpu", "cpu, whole node"]
    assert not price_warnings(arrays, Profile())


def test_where_nobody_says_what_a_node_has_the_price_says_so() -> None:
    arrays = arrays_of(plan_of(), 0)
    assert arrays[1].hours() == pytest.approx(2 * arrays[1].minutes / 60)
    (warning,) = price_warnings(arrays, Profile())
    assert "class cpu have a node to themselves" in warning
    assert "node_cpus" in warning
    assert not price_warnings(arrays_of(plan_of(""), 0), Profile())


def test_the_script_asks_for_the_whole_node(tmp_path: Path) -> None:
    behaviour, timing = arrays_of(plan_of(), 0)
    scripts = [
        sbatch_text(Profile(), array.resources, tmp_path, len(array.tasks), "n", environment={})
        for array in (behaviour, timing)
    ]
    assert [bool(re.search(r"^#SBATCH --exclusive$", text, re.MULTILINE)) for text in scripts] == [False, True]


def test_long_timings_ask_for_the_time_they_need() -> None:
    long = plan_of("[latency]\nprompt_tokens = 8\nnew_tokens = 1000\nrepeats = 20\n")
    assert arrays_of(long, 0)[1].resources.minutes > 20


def test_a_process_is_pinned_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores)
        assert len(cores) == 1
    assert os.sched_getaffinity(0) == before


# -- running -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timed_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("timed"), TINY + LATENCY)


def test_timings_are_added_to_a_run_whose_cells_stay(run_copy: Path, timed_study: Path) -> None:
    """Byte for byte: every table but that of costs and of times is as it was before and after."""
    before = {path: path.stat().st_mtime_ns for path in run_copy.glob("cells/*/*/cell.parquet")}
    tables = {path.name: path.read_bytes() for path in (run_copy / "tables").glob("*.csv")}
    outcome = run_study(timed_study, executor="debug", out=run_copy, quiet=True)
    assert outcome.states == {"done": 6}
    assert outcome.computed == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    after = {path.name: path.read_bytes() for path in (run_copy / "tables").glob("*.csv")}
    changed = {name for name in after if tables.get(name) != after[name]}
    assert changed == {"latency.csv", "coverage.csv"}  # timed cells are covered too
    latency = pq.read_table(run_copy / "tables" / "latency.parquet").to_pylist()
    assert [(row["variant"], row["threads"]) for row in latency] == [("dense", 1), ("masked", 1), ("csr", 1)]
    assert all(row["decode_s_per_token"] > 0 and row["perplexity"] > 0 for row in latency)
    page = (run_copy / "report" / "index.html").read_text(encoding="utf-8")
    assert 'id="speed"' in page
    assert list((run_copy / "figures").glob("speed-*.png"))
    assert json.loads((run_copy / "inputs.json").read_text())["resources"]["small"]["cpus"] == 1


def test_a_killed_timing_job_goes_on_where_it_was(
    run_copy: Path, timed_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsehpc.latency import cells as latency

    plain, timed = latency._time, []

    def dies(cell: Cell, *rest: Any) -> Any:
        if len(timed) == 1:
            raise KeyboardInterrupt
        timed.append(cell.cell_id)
        return plain(cell, *rest)

    monkeypatch.setattr(latency, "_time", dies)
    with pytest.raises(KeyboardInterrupt):
        run_study(timed_study, executor="debug", out=run_copy, quiet=True, summary=False)
    folder = RunFolder(run_copy)
    waiting = [cell for cell in read_plan(folder.plan) if cell.latency]
    assert [shard_state(folder.cell(cell.cell_id), cell.cell_id).state for cell in waiting] == [
        "done",
        "missing",
        "missing",
    ]
    monkeypatch.setattr(latency, "_time", lambda cell, *rest: (timed.append(cell.cell_id), plain(cell, *rest))[1])
    CellJob(str(run_copy), tuple(cell.cell_id for cell in waiting))()
    assert timed == [cell.cell_id for cell in waiting]


def test_a_variant_that_cannot_be_timed_fails_alone(
    run_copy: Path, timed_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsehpc.formats.base import FORMATS

    def broken(*_: Any) -> None:
        raise RuntimeError("no such storage")

    monkeypatch.setattr(FORMATS.get("csr"), "encode_on", broken)
    outcome = run_study(timed_study, executor="debug", out=run_copy, quiet=True, summary=False)
    assert outcome.states == {"done": 5, "failed": 1}
    folder = RunFolder(run_copy)
    last = read_plan(folder.plan)[-1]
    assert "no such storage" in shard_state(folder.cell(last.cell_id), last.cell_id).reason
    with pytest.raises(CellsFailed):
        CellJob(str(run_copy), (last.cell_id,))()


@pytest.fixture(scope="module")
def timed_run(finished_run: Path, timed_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with timings; copy it before changing anything."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("timed-run") / "run"))
    before = dict(os.environ)
    run_study(timed_study, executor="debug", out=run, quiet=True, summary=False)
    os.environ.clear()
    os.environ.update(before)
    aggregate_run(RunFolder(run), figures=False)
    return run


def refine(run: Path) -> RunFolder:
    refine_here(RunFolder(run), Wish("top1_agreement", Decimal("0.3"), 0.6), executor="debug", quiet=True)
    return RunFolder(run)


def test_refining_a_timed_run_adds_cells_of_behaviour(
    timed_run: Path, timed_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.refine.summarise", lambda run: None)
    run = refine(Path(shutil.copytree(timed_run, tmp_path / "run")))
    added = extra_cells(run)
    assert added
    assert not any(cell.latency for cell in added)
    before = [row["cell_id"] for row in pq.read_table(timed_run / "tables" / "latency.parquet").to_pylist()]
    assert [row["cell_id"] for row in pq.read_table(run.tables / "latency.parquet").to_pylist()] == before
    again = run_study(timed_study, executor="debug", out=run.root, quiet=True, summary=False)
    assert (again.computed, again.states) == (0, {"done": 6 + len(added)})


def test_timings_are_added_to_a_refined_run(run_copy: Path, timed_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.refine.summarise", lambda run: None)
    run = refine(run_copy)
    added = extra_cells(run)
    outcome = run_study(timed_study, executor="debug", out=run.root, quiet=True, summary=False)
    assert (outcome.computed, outcome.states) == (3, {"done": 6 + len(added)})
    assert set(planned_ids(run.plan)) >= {cell.cell_id for cell in added}


def test_timed_runs_are_merged_compared_and_exported(timed_run: Path, tmp_path: Path) -> None:
    """Every figure of behaviour is the same; times are nobody's contradiction."""
    other = Path(shutil.copytree(timed_run, tmp_path / "other"))
    lost = next(cell for cell in read_plan(RunFolder(other).plan) if cell.latency)
    shutil.rmtree(RunFolder(other).cell(lost.cell_id).root)
    merged = merge_runs([RunFolder(other), RunFolder(timed_run)], tmp_path / "merged")
    assert merged.coverage.complete
    assert (merged.taken[str(timed_run)], merged.doubles) == (1, 5)
    assert pq.read_table(merged.run.tables / "latency.parquet").num_rows == 3
    aggregate_run(RunFolder(other), figures=False)
    comparison = diff_runs(RunFolder(other), RunFolder(timed_run))
    (lost_line,) = [line for line in comparison.lines if line.cell_id == lost.cell_id]
    assert lost_line.what.endswith("latency")
    assert lost_line.difference.why == "it is missing in the first run"
    assert {line.difference.verdict for line in comparison.lines if line is not lost_line} == {"same"}
    text = export_table(RunFolder(timed_run), table="latency")
    assert len([line for line in text.splitlines() if line.startswith("| random:model")]) == 3
    assert "speedup" in text
    assert "streamed" not in text


def test_plans_of_older_releases_have_no_kinds(run_copy: Path, timed_study: Path) -> None:
    folder = RunFolder(run_copy)
    ids = planned_ids(folder.plan)
    table = pq.read_table(folder.plan)
    specs = [json.loads(text) for text in table["spec"].to_pylist()]
    old = table.drop_columns(["kind"]).set_column(
        table.schema.names.index("spec") - 1,
        "spec",
        [[json.dumps({k: v for k, v in spec.items() if k != "latency"}) for spec in specs]],
    )
    pq.write_table(old.cast(table.drop_columns(["kind"]).schema), folder.plan)
    assert planned_ids(folder.plan, behaviour_only=True) == ids
    assert [cell.cell_id for cell in read_plan(folder.plan)] == ids
    assert run_study(timed_study, executor="debug", out=run_copy, quiet=True, summary=False).computed == 3

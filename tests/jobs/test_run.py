"""Running: done work stays done, whatever broke in between is finished by running again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.plan_file import read_plan
from jobs.run import Outcome, run_study
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import read_measurements, read_row, shard_state

from .conftest import TINY, Answer, write_study


def run_again(study: Path, out: Path, **options: Any) -> Outcome:
    return run_study(study, executor=options.pop("executor", "debug"), out=out, summary=False, quiet=True, **options)


def stamps(run: Path) -> dict[str, int]:
    """When each cell's row was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("cells/*/*/cell.parquet")}


def figures(run: Path) -> dict[str, Any]:
    """All measurements by cell, without times."""
    folder = RunFolder(run)
    found = {}
    for cell in read_plan(folder.plan):
        row = read_row(folder.cell(cell.cell_id), cell.cell_id)
        table = read_measurements(folder.cell(cell.cell_id), row).to_pylist()
        found[cell.cell_id] = [entry for entry in table if entry["unit"] != "s"]
    return found


def test_the_whole_path_leaves_tables_figures_and_a_report(finished_run: Path) -> None:
    for name in ("tables/global.csv", "tables/coverage.parquet", "report/index.html", "report/summary.md"):
        assert (finished_run / name).stat().st_size > 0
    assert list((finished_run / "figures").glob("*.png"))
    text = (finished_run / "report" / "index.html").read_text(encoding="utf-8")
    assert "untrained" in text.lower()
    coverage = pq.read_table(finished_run / "tables" / "coverage.parquet")
    assert coverage["state"].to_pylist() == ["done"] * 3


def test_a_second_run_does_no_work_and_says_so(
    run_copy: Path, tiny_study: Path, cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, page = stamps(run_copy), (run_copy / "report" / "index.html").stat().st_mtime_ns
    monkeypatch.setattr("jobs.run.run_in_processes", lambda *_: pytest.fail("computed something"))
    said = cli("run", tiny_study, "--out", run_copy)
    assert said.code == 0
    assert said.out.startswith(f"nothing to do: all 3 cells of {run_copy} are done")
    assert stamps(run_copy) == before
    assert (run_copy / "report" / "index.html").stat().st_mtime_ns == page


@pytest.mark.parametrize("damage", ["row gone", "row cut", "figures cut", "figures gone", "bit flipped", "a folder"])
def test_only_what_is_missing_or_damaged_is_computed_again(run_copy: Path, tiny_study: Path, damage: str) -> None:
    folder = RunFolder(run_copy)
    cell = read_plan(folder.plan)[1]
    files = folder.cell(cell.cell_id)
    before, expected = stamps(run_copy), figures(run_copy)
    if damage == "row gone":
        files.row.unlink()
    elif damage == "row cut":
        files.row.write_bytes(files.row.read_bytes()[:-20])
    elif damage == "figures cut":
        files.measurements.write_bytes(files.measurements.read_bytes()[:100])
    elif damage == "figures gone":
        files.measurements.unlink()
    elif damage == "bit flipped":
        whole = bytearray(files.measurements.read_bytes())
        whole[len(whole) // 2] ^= 1
        files.measurements.write_bytes(whole)
    else:
        files.measurements.unlink()
        files.measurements.mkdir()
        (files.measurements / "x").write_text("x")
    outcome = run_again(tiny_study, run_copy)
    assert (outcome.computed, outcome.states) == (1, {"done": 3})
    after = stamps(run_copy)
    assert {cell_id for cell_id in after if after[cell_id] != before.get(cell_id)} == {cell.cell_id}
    assert figures(run_copy) == expected


def test_results_do_not_depend_on_packing_or_executor(finished_run: Path, tiny_study: Path, tmp_path: Path) -> None:
    outcome = run_again(tiny_study, tmp_path / "apart", executor="local", cells_a_job=1, side_by_side=2)
    assert outcome.states == {"done": 3}
    assert figures(tmp_path / "apart") == figures(finished_run)


def test_a_cell_that_fails_is_recorded_told_and_tried_again(
    tmp_path: Path, tiny_study: Path, cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One variant breaks: its cell fails with the reason, the others are done; repaired, one run finishes it."""
    from sparsehpc.formats.base import FORMATS

    out = tmp_path / "run"
    layout = FORMATS.get("csr")
    whole = layout.encode

    def broken(weight: Any, pattern: str = "unstructured") -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(layout, "encode", broken)
    said = cli("run", tiny_study, "--out", out, "--executor", "debug", "--no-report")
    assert said.code == 1
    assert "OOM" in said.err
    assert "sparsehpc status" in said.err
    folder = RunFolder(out)
    states = {cell.variant: shard_state(folder.cell(cell.cell_id), cell.cell_id) for cell in read_plan(folder.plan)}
    assert states["csr"].state == "failed"
    assert states["csr"].cause == "OOM"
    assert "no more" in states["csr"].reason
    record = json.loads(folder.cell(read_plan(folder.plan)[2].cell_id).failure.read_text(encoding="utf-8"))
    assert "MemoryError" in record["traceback"]
    listed = cli("status", out, "--failed")
    assert "OOM" in listed.out
    monkeypatch.setattr(layout, "encode", whole)
    assert run_again(tiny_study, out).states == {"done": 3}
    assert not list(out.glob("cells/*/*/failure.json"))


def test_models_that_are_not_prepared_are_one_error_before_anything_starts(
    tmp_path: Path, cli: Callable[..., Answer]
) -> None:
    said = cli("run", "reference", "--out", tmp_path / "run")
    assert said.code == 2
    assert "sparsehpc prepare facebook/opt-125m" in said.err
    assert "sparsehpc prepare EleutherAI/pythia-410m" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_is_finished_by_the_next(tmp_path: Path, session_home: Path, how: signal.Signals) -> None:
    """Stopped after the first cells were done: those are kept, nothing is left running, the next run does the rest."""
    study = write_study(tmp_path, TINY.replace("[0.5]", "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]"))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "jobs", "run", str(study), "--out", str(out), "--pack", "2", "--no-report"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        # A shell that starts the tests in the background has them ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while len(stamps(out)) < 2 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(how)
    said = process.communicate(timeout=60)
    kept = stamps(out)
    assert 2 <= len(kept) < 17, said
    if how is not signal.SIGKILL:
        assert process.returncode == 130, said
        assert "goes on" in said[1]
    else:
        # Nobody told the job; it ends by itself with its cells.
        time.sleep(0.5)
    outcome = run_again(study, out)
    assert outcome.states == {"done": 17}
    after = stamps(out)
    assert {cell_id: after[cell_id] for cell_id in kept} == kept


def test_a_process_that_is_killed_leaves_a_record(
    tmp_path: Path, tiny_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out-of-memory killers give no time for last words: the parent records what happened."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'slurm.task' in ' '.join(getattr(sys, 'orig_argv', [])):\n    os.kill(os.getpid(), 9)\n"
    )
    outcome = run_again(tiny_study, tmp_path / "run", executor="local")
    assert outcome.states == {"failed": 3}
    folder = RunFolder(tmp_path / "run")
    cell_id = read_plan(folder.plan)[0].cell_id
    state = shard_state(folder.cell(cell_id), cell_id)
    assert state.cause == "LOST"
    assert "killed" in state.reason
    (tmp_path / "sitecustomize.py").unlink()
    assert run_again(tiny_study, tmp_path / "run").states == {"done": 3}

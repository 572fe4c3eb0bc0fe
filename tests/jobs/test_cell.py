"""The callable of a node: nothing but a path and names travels; what is done is seen on disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.cell import CellJob, CellsFailed, LoggedProgress, _near, cause_of
from jobs.inputs import load_inputs
from jobs.plan_file import read_plan
from jobs.threads import usable_cores
from slurm.stage import Stage
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import read_row, shard_state


def ids_of(run: Path) -> list[str]:
    return [cell.cell_id for cell in read_plan(RunFolder(run).plan)]


def test_done_cells_are_skipped_without_loading_a_model(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.cell._compute", lambda *_: pytest.fail("computed something"))
    job = CellJob(str(finished_run), tuple(ids_of(finished_run)))
    assert job() == {"done before": 3, "done now": 0}


def test_a_job_computes_only_its_open_cells(run_copy: Path) -> None:
    folder, ids = RunFolder(run_copy), ids_of(run_copy)
    for cell_id in ids[1:]:
        folder.cell(cell_id).row.unlink()
    assert CellJob(str(run_copy), (ids[0], ids[2]))(lambda *_: None) == {"done before": 1, "done now": 1}
    assert shard_state(folder.cell(ids[2]), ids[2]).state == "done"
    assert shard_state(folder.cell(ids[1]), ids[1]).state == "missing"


def test_a_checkpoint_is_the_same_call() -> None:
    job = CellJob("/run", ("a" * 20,))
    delayed = job.__submitit_checkpoint__()
    assert delayed.function == job
    # submitit asks for an attribute of this name before it requeues anything.
    assert job.checkpoint().function == job
    text = pickle.dumps(job)
    assert pickle.loads(text) == job
    assert len(text) < 500


def test_columns_that_only_the_job_knows(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "41")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    folder, ids = RunFolder(run_copy), ids_of(run_copy)
    folder.cell(ids[0]).row.unlink()
    CellJob(str(run_copy), (ids[0],))(lambda *_: None)
    row = read_row(folder.cell(ids[0]), ids[0])
    assert (row["job_id"], row["attempt"]) == ("41_7", 2)
    assert '"torch_threads": 1' in row["provenance"]
    assert '"torch_cpu_capability": ' in row["provenance"]
    assert row["threads"] == 1  # the class asks for one core, whatever the machine has
    for secret in (str(Path.home()), os.uname().nodename, str(run_copy)):
        assert f'"{secret}' not in row["provenance"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_weights_are_read_from_a_copy_on_the_node_where_that_is_asked_for(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparsehpc.models.snapshot import Snapshot

    folder, [cell_id, *_] = RunFolder(run_copy), ids_of(run_copy)
    before, rows = folder.cell(cell_id).measurements.read_bytes(), []
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    read_from, real = set[Path](), Snapshot.read
    monkeypatch.setattr(Snapshot, "read", lambda self, *a, **k: (read_from.add(self.path), real(self, *a, **k))[1])
    monkeypatch.setenv("SPARSEHPC_STAGE", "1")
    for place in (scratch, tmp_path / "none"):
        monkeypatch.setenv("SPARSEHPC_SCRATCH", str(place))
        for variable in ("SLURM_TMPDIR", "LOCAL_SCRATCH", "LOCALSCRATCH", "TMP_LOCAL", "TMPDIR"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr("slurm.stage.file_system", lambda path: "tmpfs")
        folder.cell(cell_id).row.unlink()
        assert CellJob(str(run_copy), (cell_id,))(lambda *_: None)["done now"] == 1
        rows.append(json.loads(read_row(folder.cell(cell_id), cell_id)["provenance"])["weights_read"])
        assert rows[-1] in capsys.readouterr().out
        assert folder.cell(cell_id).measurements.read_bytes() == before
    assert rows == [
        "node-local copy (SPARSEHPC_SCRATCH), made by this task",
        "in place; the system's folder: a file system of type tmpfs",
    ]
    near, far = sorted(read_from, key=lambda path: not path.is_relative_to(scratch))
    assert near.is_relative_to(scratch)
    assert not far.is_relative_to(scratch)
    assert list(scratch.iterdir()) == []


def test_a_copy_of_linked_weights_is_whole(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a linked file the time of its last change is kept, which a copy does not have."""
    run = RunFolder(finished_run)
    snapshot = load_inputs(run).snapshot(read_plan(run.plan)[0])
    times = {name: (snapshot.path / name).stat().st_mtime_ns for name in snapshot.files}
    linked = {name: {**entry, "mtime_ns": times[name]} for name, entry in snapshot.files.items()}
    monkeypatch.setenv("SPARSEHPC_STAGE", "1")
    monkeypatch.setenv("SPARSEHPC_SCRATCH", str(tmp_path))
    with Stage() as stage:
        near, _ = _near(dataclasses.replace(snapshot, files=linked), stage)
        assert near.path.is_relative_to(tmp_path)
        near.verify()
        assert near.headers() == snapshot.headers()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["cells", "tokens", "inputs.json", "fan", "cell"])
def test_a_run_from_someone_else_cannot_lead_out_of_itself(run_copy: Path, tmp_path: Path, part: str) -> None:
    """Links in a run folder that point elsewhere: nothing is written behind them."""
    folder, ids = RunFolder(run_copy), ids_of(run_copy)
    folder.cell(ids[0]).row.unlink()
    place = {"fan": folder.cell(ids[0]).root.parent, "cell": folder.cell(ids[0]).root}.get(part, run_copy / part)
    outside = tmp_path / "outside"
    place.rename(outside)
    place.symlink_to(outside)
    before = sorted(str(path) for path in outside.rglob("*"))
    with pytest.raises((UserError, CellsFailed), match="symbolic link"):
        CellJob(str(run_copy), tuple(ids))(lambda *_: None)
    assert sorted(str(path) for path in outside.rglob("*")) == before


@pytest.mark.parametrize("cell_id", ["../../etc", "0" * 19, "0" * 21, "G" * 20, "/" * 20, ""])
def test_an_id_that_is_none_is_refused(finished_run: Path, cell_id: str) -> None:
    with pytest.raises(UserError, match="is not a cell id"):
        CellJob(str(finished_run), (cell_id,))()


def test_a_cell_of_another_plan_is_refused(finished_run: Path) -> None:
    with pytest.raises(UserError, match="holds no cell"):
        CellJob(str(finished_run), ("0" * 20,))()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "OOM"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "OOM"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "OOM"),
        (OSError(errno.ENOSPC, "No space left on device"), "NODE"),
        (OSError(errno.ESTALE, "Stale file handle"), "NODE"),
        (FileNotFoundError(errno.ENOENT, "gone"), "CODE"),
        (ValueError("x"), "CODE"),
    ],
)
def test_causes(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_a_time_out_that_submitit_raises_is_a_matter_of_time() -> None:
    from submitit.core.utils import UncompletedJobError

    assert cause_of(UncompletedJobError("timed-out too many times")) == "TIME"


def test_an_error_of_the_pipeline_is_recorded_for_every_cell_it_hit(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ids = RunFolder(run_copy), ids_of(run_copy)
    for cell_id in ids[1:]:
        folder.cell(cell_id).row.unlink()

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sparsehpc.pipeline.run_cells", broken)
    with pytest.raises(CellsFailed, match=r"2 of 3 cells failed.*No space left"):
        CellJob(str(run_copy), tuple(ids))()
    states = [shard_state(folder.cell(cell_id), cell_id) for cell_id in ids]
    assert [(state.state, state.cause) for state in states] == [("done", ""), ("failed", "NODE"), ("failed", "NODE")]


def test_a_pipeline_that_forgets_a_cell_does_not_hide_it(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ids = RunFolder(run_copy), ids_of(run_copy)
    folder.cell(ids[1]).row.unlink()
    monkeypatch.setattr("sparsehpc.pipeline.run_cells", lambda *_, **__: None)
    with pytest.raises(CellsFailed):
        CellJob(str(run_copy), (ids[1],))()
    assert "without a result" in shard_state(folder.cell(ids[1]), ids[1]).reason


def test_the_payload_of_scripts(run_copy: Path) -> None:
    """``python -m jobs cell RUN CELL``: exit status 0 where done, 1 where a cell failed, 2 for a user's mistake."""
    ids = ids_of(run_copy)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs", "cell", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert call(str(run_copy), *ids).returncode == 0
    wrong = call(str(run_copy), "0" * 20)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert "Traceback" not in wrong.stderr
    assert call(str(run_copy)).returncode != 0
    RunFolder(run_copy).cell(ids[0]).row.unlink()
    for path in RunFolder(run_copy).tokens.iterdir():
        path.unlink()
    failed = call(str(run_copy), ids[0])
    assert failed.returncode == 1
    assert "token file" in failed.stderr


def test_threads_follow_the_request_and_the_affinity_mask() -> None:
    assert usable_cores(1) == 1
    assert usable_cores(10_000) == len(os.sched_getaffinity(0))


def test_a_log_gets_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LoggedProgress()
    for done in range(1000):
        progress("layers", done, 1000)
    progress("layers", 1000, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["layers 0/1000", "layers 1000/1000"]

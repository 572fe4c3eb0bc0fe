"""Arrays, exit causes and the queue on a real Slurm."""

import datetime
import functools
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from slurm.causes import classify, read_tail, task_log
from slurm.executor import SubmissionRefused, SubmissionUnclear, make_executor
from slurm.ledger import job_id_from_logs
from slurm.profile_file import load_profile, parse_profile
from slurm.queue import Queue
from slurm.resources import Resources

SMALL = Resources(memory_gib=0.25, minutes=15)
GREEDY = "x = bytearray(600 << 20)\nx[::4096] = b'1' * len(x[::4096])\nimport time\ntime.sleep(60)"


def shell(command):
    return functools.partial(subprocess.run, command, shell=True, check=True)


def ended(folder, name, wait_for):
    queue = Queue(folder, interval_s=1)
    since = datetime.datetime.now(datetime.UTC)
    seen = {}

    def done():
        seen["it"] = queue.look([name], since, fresh=True)
        tasks = seen["it"].tasks.values()
        return tasks and not any(state.active for state in tasks)

    wait_for(done, f"end of {name}", 90)
    time.sleep(1.5)  # figures of steps reach the database a moment later
    return queue.look([name], since, fresh=True)


def test_an_array_returns_results_and_tells_why_tasks_died(bed, tmp_path, wait_for):
    folder = tmp_path / "s"
    calls = [
        functools.partial(sum, [1, 2]),
        shell("kill -9 $PPID"),
        shell("exit 3"),
        functools.partial(exec, GREEDY),
        functools.partial(os.getenv, "OMP_NUM_THREADS"),
        functools.partial(os.getenv, "TMPDIR"),
    ]
    jobs = make_executor("slurm", folder, SMALL, load_profile("testbed"), "causes").submit_array(calls)
    snapshot = ended(tmp_path, "causes", wait_for)
    assert snapshot.problems == []
    assert snapshot.ids("causes") == {jobs[0].job_id.split("_")[0]} == {job_id_from_logs(folder)}

    def cause(task):
        state = snapshot.tasks["causes", task]
        return classify(state, read_tail(task_log(folder, state.job_id, task)), SMALL.memory_mib << 20).cause

    assert [jobs[0].result(), jobs[4].result()] == [3, "1"]
    assert [cause(task) for task in (1, 2, 3)] == ["LOST", "CODE", "OOM"]

    def peak_is_known():  # the step's figures may reach the database seconds after the queue forgot the task
        return ended(tmp_path, "causes", wait_for).tasks["causes", 3].peak_bytes > SMALL.memory_mib << 20

    wait_for(peak_is_known, "peak memory in the accounting", 60)
    scratch = jobs[5].result()
    assert "sparsehpc-" in scratch
    assert not Path(scratch).exists()
    assert stat.S_IMODE((folder / "payload.pkl").stat().st_mode) == 0o600


def test_a_gpu_class_gets_its_device(bed, tmp_path, wait_for):
    resources = Resources(name="gpu", memory_gib=0.25, minutes=15, gpus=1)
    job = make_executor("slurm", tmp_path / "s", resources, load_profile("testbed"), "gpu").submit(
        os.getenv, "CUDA_VISIBLE_DEVICES"
    )
    state = ended(tmp_path, "gpu", wait_for).tasks["gpu", 0]
    assert (job.result(), state.nodes) == ("0", "g1")


def test_scancel_is_cancelled(bed, tmp_path, wait_for):
    executor = make_executor("slurm", tmp_path / "s", SMALL, load_profile("testbed"), "gone")
    job = executor.submit(time.sleep, 100)
    queue, since = Queue(tmp_path), datetime.datetime.now(datetime.UTC)
    wait_for(lambda: queue.look(["gone"], since, fresh=True).tasks["gone", 0].running, "running")
    subprocess.run(["scancel", job.job_id], check=True)
    state = ended(tmp_path, "gone", wait_for).tasks["gone", 0]
    assert classify(state, read_tail(task_log(tmp_path / "s", state.job_id, 0)), 1 << 28).cause == "CANCELLED"


def test_sbatchs_own_words_are_shown(bed, tmp_path):
    bad = parse_profile("[job]\npartition = 'nowhere'", name="bad", where="bad")
    with pytest.raises(SubmissionRefused, match="invalid partition specified"):
        make_executor("slurm", tmp_path / "s", SMALL, bad, "bad").submit(sum, [1])


def test_no_answer_is_not_taken_for_a_refusal(bed, tmp_path, monkeypatch, wait_for):
    slow = tmp_path / "bin" / "sbatch"
    slow.parent.mkdir()
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    slow.write_text(f'#!/bin/sh\n{real} "$@" >/dev/null\nsleep 30\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    profile = load_profile("testbed")
    hasty = profile.model_copy(update={"limits": profile.limits.model_copy(update={"sbatch_timeout_s": 2.0})})
    with pytest.raises(SubmissionUnclear, match="did not answer"):
        make_executor("slurm", tmp_path / "s", SMALL, hasty, "unclear").submit(sum, [1])
    assert len(ended(tmp_path, "unclear", wait_for).ids("unclear")) == 1

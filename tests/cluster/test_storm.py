"""A study of 201 cells, with faults thrown at it at random over the whole run."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from cluster_tools import lost_node, read_tables, slurm, task_processes, write_study

from slurm.ledger import read_ledger
from sparsehpc.core.layout import RunFolder

#: The same faults at the same turns of the run for a seed; where the jobs are then is up to the machine.
SEED = int(os.environ.get("SPARSEHPC_STORM_SEED", "718"))
FAULTS = (
    "kill a task", "kill a step", "scancel", "requeue", "restart the controller", "stop accounting", "stop a node",
    "truncate a shard", "flip a bit", "replace a shard", "drop figures", "write twice",
)  # fmt: skip


class Storm:
    """Injects one fault after another; says what it did."""

    def __init__(self, bed, run, wait_for, choose):
        self.bed, self.run, self.wait_for, self.choose = bed, RunFolder(run), wait_for, choose
        self.done = []

    def throw(self, fault):
        getattr(self, fault.replace(" ", "_"))()
        self.done.append(fault)

    def _job_ids(self):
        return [item.job_id for item in read_ledger(self.run)[0] if item.job_id and item.purpose == "cells"]

    def _task(self):
        """A running task of this run, if one comes within a while."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = [(job, *task) for job in self._job_ids() for task in task_processes(job)]
            if found:
                return self.choose.choice(found)
            time.sleep(0.1)
        return None

    def _shard(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if rows := sorted(self.run.cells.glob("*/*/cell.parquet")):
                return self.choose.choice(rows)
            time.sleep(0.2)
        pytest.fail("no shard after a minute")

    def kill_a_task(self):
        if found := self._task():
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[1], signal.SIGKILL)

    def kill_a_step(self):
        if found := self._task():
            subprocess.run(["scancel", "--signal=KILL", f"{found[0]}_{found[2]}"], check=False)

    def scancel(self):
        if found := self._task():
            subprocess.run(["scancel", f"{found[0]}_{found[2]}"], check=False)

    def requeue(self):
        if found := self._task():
            subprocess.run(["scontrol", "requeue", f"{found[0]}_{found[2]}"], check=False, capture_output=True)

    def restart_the_controller(self):
        self.bed.stop("slurmctld")
        self.bed.start("slurmctld")
        self.wait_for(self.bed.is_up, "the controller", 60)

    def stop_accounting(self):
        self.bed.stop("slurmdbd")
        time.sleep(3)
        self.bed.start("slurmdbd")

    def stop_a_node(self):
        with lost_node(self.bed, "c2", patience_s=0):
            pass

    def truncate_a_shard(self):
        row = self._shard()
        row.write_bytes(row.read_bytes()[:-50])

    def flip_a_bit(self):
        path = self._shard().with_name("measurements.parquet")
        data = bytearray(path.read_bytes())
        data[self.choose.randrange(len(data))] ^= 1 << self.choose.randrange(8)
        path.write_bytes(data)

    def replace_a_shard(self):
        row = self._shard()
        row.unlink()
        row.mkdir()

    def drop_figures(self):
        self._shard().with_name("measurements.parquet").unlink(missing_ok=True)

    def write_twice(self):
        first = read_ledger(self.run)[0][0]
        words = [sys.executable, "-m", "jobs", "cell", str(self.run.root), *first.tasks[0]]
        subprocess.run(words, check=True, capture_output=True)


def test_two_hundred_cells_through_a_storm(bed, study_folder, cli, finish, profile, tmp_path, undisturbed, wait_for):
    study, run, choose = write_study(study_folder, "many"), tmp_path / "run", random.Random(SEED)
    polite = profile(limits="max_array_tasks = 6", interval_s=60.0)
    words = ["submit", str(study), "--profile", polite, "--out", str(run), "--yes", "--pack", "12", "--no-aggregate"]
    sender = subprocess.Popen(
        [sys.executable, "-m", "jobs", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: any(item.fate == "accepted" for item in read_ledger(RunFolder(run))[0]), "the first array", 120)
    sender.kill()
    sender.wait()
    storm = Storm(bed, run, wait_for, choose)
    faults = list(FAULTS)
    choose.shuffle(faults)
    storm.throw(faults.pop())
    answer = cli("submit", study, "--profile", "testbed", "--out", run, "--yes", "--pack", "12", "--no-aggregate")
    assert answer.code == 0, answer.said
    for fault in faults:
        time.sleep(choose.uniform(0, 1))
        storm.throw(fault)
    assert len(storm.done) == len(FAULTS)
    found = finish(run, "--profile", "testbed", rounds=10)
    assert found["cells"]["done"] == found["cells"]["expected"] == 201
    assert slurm("squeue", "-h", "-o", "%j").count(run.name) == 0
    assert cli("aggregate", run).code == 0
    assert finish(run, "--profile", "testbed")["cells"]["done"] == 201
    assert read_tables(run) == undisturbed(study)

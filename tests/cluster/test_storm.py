"""A study of 204 cells, of every method and every format, with faults thrown at it at random over the whole run."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster_tools import lost_node, read_tables, slurm, state_letter, task_processes, write_study

from jobs.plan_file import read_plan
from slurm.ledger import read_ledger
from sparsehpc.core.layout import RunFolder

#: The same faults at the same turns of the run for a seed; where the jobs are then is up to the machine.
SEED = int(os.environ.get("SPARSEHPC_STORM_SEED", "718"))
FAULTS = (
    "kill a task", "kill a step", "scancel", "requeue", "restart the controller", "stop accounting", "stop a node",
    "truncate a shard", "flip a bit", "replace a shard", "drop figures", "write twice",
)  # fmt: skip


class Storm:
    """Injects one fault after another, and knows which of them have met something that they could break."""

    def __init__(self, bed, run, wait_for, choose, retry):
        self.bed, self.run, self.wait_for, self.choose, self.retry = bed, RunFolder(run), wait_for, choose, retry
        self.hits, self.hurt = [], set()

    def throw(self, fault):
        """Try a fault up to three times: a task may end of itself at just that moment."""
        if any(getattr(self, fault.replace(" ", "_"))() for _ in range(3)):
            self.hits.append(fault)

    def _tasks(self):
        """Running tasks of this run: array, process, index."""
        jobs = [item.job_id for item in read_ledger(self.run)[0] if item.job_id and item.purpose == "cells"]
        return [(job, *task) for job in jobs for task in task_processes(job)]

    def _some_task(self):
        """One that runs; where all are over, what was broken goes again, and where nothing is, something is broken."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if found := self._tasks():
                return self.choose.choice(found)
            if self.run.root.name not in slurm("squeue", "-h", "-o", "%j") and not self.retry():
                self.truncate_a_shard()
            time.sleep(0.3)
        return None

    @contextlib.contextmanager
    def _held(self):
        """A task that is stopped in the middle, so that the fault cannot come too late; None where it has ended."""
        job, pid, task = self._some_task() or ("", 0, 0)
        try:
            if pid:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.05)
            yield (job, pid, task) if state_letter(pid) == "T" else None
        except ProcessLookupError:
            yield None
        finally:
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGCONT)

    def _gone(self, pid):
        self.wait_for(lambda: state_letter(pid) in ("", "Z"), f"end of process {pid}", 30)
        return True

    def kill_a_task(self):
        with self._held() as found:
            if found:
                os.kill(found[1], signal.SIGKILL)
                return self._gone(found[1])
        return False

    def _ask_slurm(self, *command):
        """Ask Slurm to end a task that runs; whether it did."""
        with self._held() as found:
            if not found:
                return False
            slurm(*command, f"{found[0]}_{found[2]}")
            os.kill(found[1], signal.SIGCONT)  # it may end in peace
            return self._gone(found[1])

    def kill_a_step(self):
        return self._ask_slurm("scancel", "--signal=KILL")

    def scancel(self):
        return self._ask_slurm("scancel")

    def requeue(self):
        return self._ask_slurm("scontrol", "requeue")

    def restart_the_controller(self):
        busy = self._some_task()
        self.bed.stop("slurmctld")
        self.bed.start("slurmctld")
        self.wait_for(self.bed.is_up, "the controller", 60)
        return busy is not None

    def stop_accounting(self):
        busy = self._some_task()
        self.bed.stop("slurmdbd")
        time.sleep(3)
        self.bed.start("slurmdbd")
        return busy is not None

    def stop_a_node(self):
        if not (found := self._some_task()):
            return False
        try:
            variables = Path(f"/proc/{found[1]}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        [node] = (word.partition(b"=")[2].decode() for word in variables if word.startswith(b"SLURMD_NODENAME="))
        with lost_node(self.bed, node, patience_s=0):
            return True

    @contextlib.contextmanager
    def _shard(self, name):
        """A file of a cell that is done and has not been hurt before."""
        rows = []

        def one_is_there():
            whole = (path.parent for path in self.run.cells.glob("*/*/cell.parquet") if path.is_file())
            rows[:] = sorted(folder for folder in whole if folder.name not in self.hurt and (folder / name).is_file())
            return rows

        self.wait_for(one_is_there, "a shard that is whole", 60)
        folder = self.choose.choice(rows)
        yield folder / name
        self.hurt.add(folder.name)

    def truncate_a_shard(self):
        with self._shard("cell.parquet") as row:
            row.write_bytes(row.read_bytes()[:-50])
        return True

    def flip_a_bit(self):
        with self._shard("measurements.parquet") as path:
            data = bytearray(path.read_bytes())
            data[self.choose.randrange(len(data))] ^= 1 << self.choose.randrange(8)
            path.write_bytes(data)
        return True

    def replace_a_shard(self):
        with self._shard("cell.parquet") as row:
            row.unlink()
            row.mkdir()
        return True

    def drop_figures(self):
        with self._shard("measurements.parquet") as path:
            path.unlink()
        return True

    def write_twice(self):
        """Compute the cells of a task beside it; neither has written any of them when the other begins."""
        with self._held() as found:
            if not found:
                return False
            cells = next(item for item in read_ledger(self.run)[0] if item.job_id == found[0]).tasks[found[2]]
            words = [sys.executable, "-m", "jobs", "cell", str(self.run.root), *cells]
            other = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            both_write = not any(self.run.cell(cell).row.exists() for cell in cells)
            os.kill(found[1], signal.SIGCONT)
            said = other.communicate()[1]
            assert other.returncode == 0, said
            return both_write


def test_two_hundred_cells_through_a_storm(bed, study_folder, cli, finish, profile, tmp_path, undisturbed, wait_for):
    study, run, choose = write_study(study_folder, "many"), tmp_path / "storm", random.Random(SEED)
    polite = profile(limits="max_array_tasks = 6", interval_s=60.0)
    words = ["submit", str(study), "--profile", polite, "--out", str(run), "--yes", "--pack", "17", "--no-aggregate"]
    sender = subprocess.Popen(
        [sys.executable, "-m", "jobs", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: any(item.fate == "accepted" for item in read_ledger(RunFolder(run))[0]), "the first array", 120)
    assert sender.poll() is None
    sender.kill()
    sender.wait()

    def retry():
        """Whether anything goes again, or may: a scheduler that has just been restarted need not answer."""
        answer = cli("retry", run, "--yes", "--no-aggregate", "--profile", "testbed", "--json")
        assert answer.code in (0, 2), answer.said
        return answer.code == 2 or bool(json.loads(answer.out)["job_ids"])

    storm = Storm(bed, run, wait_for, choose, retry)
    faults = list(FAULTS)
    choose.shuffle(faults)
    storm.throw(faults.pop())
    answer = cli("submit", study, "--profile", "testbed", "--out", run, "--yes", "--pack", "17", "--no-aggregate")
    assert answer.code == 0, answer.said
    for fault in faults:
        time.sleep(choose.uniform(0, 1))
        storm.throw(fault)
    assert len(storm.hits) >= 10, f"these faults met nothing: {set(FAULTS) - set(storm.hits)}"
    found = finish(run, "--profile", "testbed", rounds=10)
    cells = list(read_plan(RunFolder(run).plan))
    assert found["cells"]["done"] == found["cells"]["expected"] == len(cells) >= 200
    known = {kind: json.loads(cli("ls", kind, "--json").out)[kind] for kind in ("methods", "variants")}
    assert {cell.variant for cell in cells} == {item["name"] for item in known["variants"]}
    assert {cell.pruning.method for cell in cells} == {item["name"] for item in known["methods"]} | {"none"}
    assert slurm("squeue", "-h", "-o", "%j").count(run.name) == 0
    assert cli("aggregate", run).code == 0
    assert finish(run, "--profile", "testbed")["cells"]["done"] == len(cells)
    assert read_tables(run) == undisturbed(study)

"""Parts of the cluster itself go away and come back: a node, the controller, accounting."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from cluster_tools import caught, lost_node, read_tables

from slurm.ledger import read_ledger
from sparsehpc.core.layout import RunFolder


def test_a_node_that_dies_in_the_middle(bed, few, cli, settled, finish, profile, tmp_path, undisturbed):
    """slurmd is stopped while it computes: the job starts again elsewhere by itself, or is NODE and is retried."""
    run = tmp_path / "run"
    pinned = profile("nodelist = 'c2'\nrequeue = false")
    answer = cli("submit", few, "--profile", pinned, "--out", run, "--yes", "--no-aggregate", "--pack", "9", "--json")
    [job] = json.loads(answer.out)["job_ids"]
    held = caught(job, 1)
    with lost_node(bed, "c2", patience_s=60):
        with contextlib.suppress(ProcessLookupError):
            os.kill(held[0], signal.SIGKILL)
        found = settled(run)
        assert found["failed_by_cause"] == {"NODE": 9}, found["states"]
        dry = cli("retry", run, "--dry-run", "--profile", "testbed")
        assert "9 NODE" in dry.out
        answer = cli("retry", run, "--yes", "--no-aggregate", "--profile", "testbed")
        assert answer.code == 0, answer.said
        script = (read_ledger(RunFolder(run))[0][-1].folder(RunFolder(run)) / "submit.sh").read_text()
        assert "#SBATCH --exclude=c2" in script
        settled(run)
    finish(run)
    assert read_tables(run) == undisturbed(few)


def test_the_controller_restarts_during_submission(bed, few, finish, profile, tmp_path, undisturbed, wait_for):
    """It goes away after the first of three arrays and is back while the second is being sent."""
    run = tmp_path / "run"
    name = profile(limits="max_array_tasks = 1", interval_s=3.0)
    words = ["submit", str(few), "--profile", name, "--out", str(run), "--yes", "--no-aggregate", "--pack", "4"]

    def fates():
        return [item.fate for item in read_ledger(RunFolder(run))[0]]

    sender = subprocess.Popen([sys.executable, "-m", "jobs", *words], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: fates() == ["accepted"], "the first array")
    bed.stop("slurmctld")
    try:
        assert fates() == ["accepted"]
        wait_for(lambda: fates() == ["accepted", "open"], "the second array on its way")
        time.sleep(1)
    finally:
        bed.start("slurmctld")
    said = sender.communicate(timeout=120)[1]
    assert sender.returncode == 0, said
    assert set(fates()) <= {"accepted", "open"}, said
    wait_for(bed.is_up, "the controller", 60)
    bed.wait_for_nodes(60)
    for _ in range(3):  # what stayed open is settled, and what was left goes
        subprocess.run([sys.executable, "-m", "jobs", *words], capture_output=True, check=True, timeout=120)
        if fates().count("accepted") == 3:
            break
        time.sleep(16)
    finish(run)
    sent = [
        cell
        for item in read_ledger(RunFolder(run))[0]
        if item.fate != "refused"
        for task in item.tasks
        for cell in task
    ]
    assert (len(sent), len(set(sent))) == (9, 9)
    assert read_tables(run) == undisturbed(few)


def test_a_controller_that_is_away_is_said_and_nothing_is_sent(bed, few, cli, tmp_path, wait_for):
    bed.stop("slurmctld")
    try:
        answer = cli("submit", few, "--profile", "testbed", "--out", tmp_path / "run", "--yes")
        assert answer.code == 2, answer.said
        assert "does not answer" in answer.err
        assert read_ledger(RunFolder(tmp_path / "run"))[0] == []
    finally:
        bed.start("slurmctld")
        wait_for(bed.is_up, "the controller", 60)
        bed.wait_for_nodes(60)


def test_accounting_that_is_down(bed, few, cli, settled, status, finish, tmp_path, undisturbed):
    """Files and squeue say enough: jobs run, status works and says what it does not know, retry goes on."""
    run = tmp_path / "run"
    bed.stop("slurmdbd")
    try:
        answer = cli(
            "submit", few, "--profile", "testbed", "--out", run, "--yes", "--no-aggregate", "--pack", "4", "--json"
        )
        assert answer.code == 0, answer.said
        [job] = json.loads(answer.out)["job_ids"]
        held = caught(job, 3)
        os.kill(held[0], signal.SIGKILL)
        for pid in (held[1], held[2]):
            os.kill(pid, signal.SIGCONT)
        found = settled(run)
        assert "sacct did not answer" in found["problems"][0]
        assert found["cells"]["done"] == sum(map(len, read_ledger(RunFolder(run))[0][0].tasks[1:]))
        assert set(found["failed_by_cause"]) == {"LOST"}
        finish(run)
    finally:
        bed.start("slurmdbd")
    assert read_tables(run) == undisturbed(few)

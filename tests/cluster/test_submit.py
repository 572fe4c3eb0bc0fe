"""From a study to tables through a real Slurm, undisturbed."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
from cluster_tools import read_tables, slurm, write_study

from slurm.ledger import read_ledger
from sparsehpc.core.layout import RunFolder


def test_submit_returns_and_the_last_job_writes_tables_and_report(
    bed, few, cli, settled, tmp_path, undisturbed, wait_for
):
    run = tmp_path / "run"
    answer = cli("submit", few, "--profile", "testbed", "--out", run, "--yes", "--pack", "5")
    assert answer.code == 0, answer.said
    assert "2 tasks, 9 cells of class small" in answer.err
    assert "tables and report, once all cells have ended" in answer.err
    assert cli("submit", few, "--profile", "testbed", "--out", run, "--yes").out.count("nothing to send") == 1
    found = settled(run)
    assert found["cells"]["done"] == 9
    [used] = found["usage"]
    assert (used["tasks"], used["memory_asked_gib"]) == (2, 1.0)
    assert 0 < used["memory_used_gib"] < 1
    files = Counter(path.parent.relative_to(run / "cells") for path in (run / "cells").rglob("*") if path.is_file())
    assert {str(place) for place in files} == {f"{cell[:2]}/{cell}" for cell in found["states"]}
    assert set(files.values()) == {2}, "at most three files a cell: two, and a record where it failed"
    wait_for((run / "report" / "index.html").exists, "report by the last job")
    assert read_tables(run) == undisturbed(few)
    said = cli("clean", run, "--yes").out
    assert "of 2 submissions; 0 submissions are kept" in said, said
    assert [path.name for path in (run / "submissions").iterdir() if path.is_dir()] == []
    assert read_tables(run) == undisturbed(few)


def test_the_last_job_waits_for_every_array_however_it_ends(bed, few, cli, settled, profile, tmp_path, wait_for):
    run = tmp_path / "run"
    held = profile(limits="max_array_tasks = 1", job="extra = { hold = true }")
    answer = cli("submit", few, "--profile", held, "--out", run, "--yes", "--pack", "5", "--json")
    assert answer.code == 0, answer.said
    first, second, last = read_ledger(RunFolder(run))[0]
    assert (first.purpose, second.purpose, last.purpose) == ("cells", "cells", "aggregate")
    waits = slurm("squeue", "-h", "-j", last.job_id, "-o", "%E")
    assert {word.split("(")[0] for word in waits.split(",")} == {f"afterany:{a.job_id}_*" for a in (first, second)}
    slurm("scontrol", "release", last.job_id)
    slurm("scancel", second.job_id)
    slurm("scontrol", "release", first.job_id)
    found = settled(run)
    assert (found["cells"]["done"], found["failed_by_cause"]) == (5, {"CANCELLED": 4})
    wait_for((run / "report" / "index.html").exists, "report by the last job")
    coverage = pq.read_table(run / "tables" / "coverage.parquet").to_pylist()
    assert Counter(row["state"] for row in coverage) == {"done": 5, "missing": 4}
    done = {cell for cell, state in found["states"].items() if state["state"] == "done"}
    assert {row["cell_id"] for row in coverage if row["state"] == "done"} == done


def test_a_dry_run_asks_nothing_and_writes_nothing(few, cli, tmp_path):
    answer = cli("submit", few, "--profile", "generic-cpu", "--out", tmp_path / "run", "--dry-run")
    assert answer.code == 0, answer.said
    assert "#SBATCH --array=0-0%1" in answer.out
    assert "core-hours" in answer.out
    assert not (tmp_path / "run").exists()
    refused = cli("submit", few, "--profile", "generic-cpu", "--dry-run", "--max-core-hours", "0.1")
    assert refused.code == 2
    assert "more than --max-core-hours 0.1" in refused.err


def test_submit_asks_and_the_queue_is_topped_up_to_max_queued(bed, few, cli, settled, profile, tmp_path, monkeypatch):
    run, small = tmp_path / "run", profile(limits="max_queued = 2\nmax_array_tasks = 1")
    words = ["submit", few, "--profile", small, "--out", run, "--pack", "4", "--no-aggregate"]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    asked = cli(*words)
    assert (asked.code, "submit?" in asked.err, run.exists()) == (1, True, False)
    first = cli(*words, "--yes", "--json")
    assert json.loads(first.out)["cells"] == {"done": 0, "queued": 0, "failed": 0, "later": 2, "to_send": 7}
    assert len(json.loads(first.out)["job_ids"]) == 2
    settled(run)
    second = cli(*words, "--yes", "--json")
    assert json.loads(second.out)["cells"] == {"done": 7, "queued": 0, "failed": 0, "later": 0, "to_send": 2}
    assert settled(run)["cells"]["done"] == 9


def test_cancel_and_retry(bed, few, cli, settled, finish, profile, tmp_path, undisturbed):
    run = tmp_path / "run"
    slow = profile(job="setup = ['sleep 60']")
    assert cli("submit", few, "--profile", slow, "--out", run, "--yes", "--pack", "5").code == 0
    assert "2 jobs cancelled" in cli("cancel", run, "--yes").out  # the array, and the job that aggregates
    found = settled(run)
    assert found["failed_by_cause"] == {"CANCELLED": 9}
    assert "nothing to send" in cli("submit", few, "--profile", "testbed", "--out", run, "--yes").out
    finish(run, "--profile", "testbed")
    assert read_tables(run) == undisturbed(few)


def test_a_script_by_hand_computes_its_cell(bed, few, cli, profile, status, tmp_path, wait_for):
    from jobs.folder import open_run
    from jobs.inputs import fix_inputs
    from jobs.plan import make_plan
    from jobs.run import start
    from jobs.study import load_study

    study = load_study(few)
    plan = make_plan(study)
    run, _ = start(study, plan, tmp_path / "run", quiet=True)
    fix_inputs(run, study, plan.cells)
    open_run(run.root, study, plan.cells)
    cell = plan.cells[3].cell_id
    script = tmp_path / "cell.sh"
    script.write_text(cli("script", run.root, cell, "--profile", "testbed").out)
    slurm("sbatch", str(script))
    wait_for(lambda: status(run.root)["states"][cell]["state"] == "done", "the cell")
    assert status(run.root)["cells"]["done"] == 1


def test_a_submitter_killed_between_two_arrays_leaves_nothing_twice(
    bed, study_folder, few, cli, finish, profile, tmp_path, undisturbed, wait_for
):
    run = tmp_path / "run"
    slow = profile(limits="max_array_tasks = 1", interval_s=60.0)
    words = ["submit", str(few), "--profile", slow, "--out", str(run), "--yes", "--pack", "4", "--no-aggregate"]

    def stopped(number, arrays):
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *words], stderr=subprocess.PIPE, text=True,
            # Tests that run in a shell's background ignore Ctrl-C, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        sent = functools.partial(read_ledger, RunFolder(run))
        wait_for(lambda: [item.fate for item in sent()[0]] == ["accepted"] * arrays, f"array {arrays}")
        os.kill(process.pid, number)
        said = process.communicate()[1]
        assert len(sent()[0]) == arrays
        return process.returncode, said

    code, said = stopped(signal.SIGINT, 1)
    assert (code, "the same command sends the rest" in said) == (130, True)
    assert stopped(signal.SIGKILL, 2)[0] == -signal.SIGKILL
    again = cli(*words[:3], "testbed", *words[4:], "--json")
    assert again.code == 0, again.said
    assert json.loads(again.out)["cells"]["to_send"] == 2
    finish(run)
    submissions, problems = read_ledger(RunFolder(run))
    sent = [cell for item in submissions for task in item.tasks for cell in task]
    assert (len(sent), len(set(sent)), problems) == (9, 9, [])
    assert read_tables(run) == undisturbed(few)


def test_a_submission_whose_sender_died_before_it_knew_is_settled(bed, few, cli, settled, profile, tmp_path):
    """kill -9 between sbatch and the fate: the job is found by its name; before sbatch: it is sent again."""
    run = tmp_path / "run"
    held = profile(limits="max_array_tasks = 1", job="extra = { hold = true }")
    assert cli("submit", few, "--profile", held, "--out", run, "--yes", "--pack", "5", "--no-aggregate").code == 0
    first, second = read_ledger(RunFolder(run))[0]
    job_id = first.job_id
    (first.folder(RunFolder(run)) / "job.json").unlink()
    (second.folder(RunFolder(run)) / "job.json").unlink()
    slurm("scancel", second.job_id)
    assert cli("submit", few, "--profile", "testbed", "--out", run, "--yes", "--no-aggregate").code == 0
    fates = {item.submission_id: item for item in read_ledger(RunFolder(run))[0]}
    assert (fates[first.submission_id].fate, fates[first.submission_id].job_id) == ("accepted", job_id)
    assert fates[second.submission_id].job_id == second.job_id
    slurm("scontrol", "release", job_id)
    found = settled(run)
    assert (found["cells"]["done"], found["failed_by_cause"]) == (5, {"CANCELLED": 4})


def test_sbatch_that_times_out_after_it_accepted(bed, few, cli, finish, profile, tmp_path, undisturbed, monkeypatch):
    run, real = tmp_path / "run", subprocess.run(["which", "sbatch"], capture_output=True, text=True).stdout.strip()
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n{real} "$@" >/dev/null\nsleep 60\n')
    fake.chmod(0o755)
    hasty = profile(timeout_s=3.0)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        answer = cli("submit", few, "--profile", hasty, "--out", run, "--yes", "--pack", "9", "--no-aggregate")
    assert answer.code == 0, answer.said
    assert "the job is there (found by its name)" in answer.err
    finish(run)
    assert len(read_ledger(RunFolder(run))[0]) == 1
    assert read_tables(run) == undisturbed(few)


def test_two_resource_classes_go_to_their_partitions(bed, study_folder, cli, settled, tmp_path):
    both = study_folder / "both.toml"
    both.write_text(
        write_study(study_folder, "few")
        .read_text()
        .replace("[grid]", '[[models]]\nid = "random:model"\ndtype = "float16"\nresource = "card"\n\n[grid]')
        + "[resources.card]\ncpus = 1\nmemory_gib = 1\nminutes = 15\ngpus = 1\n"
    )
    run = tmp_path / "run"
    answer = cli("submit", both, "--profile", "testbed", "--out", run, "--yes", "--no-aggregate", "--pack", "9")
    assert answer.code == 0, answer.said
    partitions = {
        item.resources["name"]: slurm("scontrol", "-o", "show", "job", item.job_id).split("Partition=")[1].split()[0]
        for item in read_ledger(RunFolder(run))[0]
    }
    assert partitions == {"small": "cpu", "card": "gpu"}
    cli("cancel", run, "--yes")
    settled(run)

"""Faults injected on a real Slurm; afterwards the tables are those of an undisturbed run, byte for byte.

Each test breaks jobs in its own run folder and its own jobs, so that nodes may be shared; what breaks the cluster
itself (a node, the controller, the accounting) comes last, in `test_outages`.
"""

import contextlib
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster_tools import cannot, caught, hold_to_the_end, read_tables, signal_waits, slurm, write_study

from slurm.ledger import read_ledger
from sparsehpc.core.layout import RunFolder


def submit(cli, study, run, *words, profile="testbed", pack="3"):
    answer = cli(
        "submit", study, "--profile", profile, "--out", run, "--yes", "--no-aggregate", "--pack", pack, "--json", *words
    )
    assert answer.code == 0, answer.said
    return json.loads(answer.out)["job_ids"]


def test_killed_and_cancelled_and_requeued_tasks(bed, few, cli, status, finish, tmp_path, undisturbed):
    """kill -9 of a task, of a whole step, scancel and scontrol requeue, each on one task of the same array."""
    run = tmp_path / "run"
    [job] = submit(cli, few, run, pack="4")
    [item], _ = read_ledger(RunFolder(run))
    assert len(item.tasks) == 3
    held = caught(job, 3)
    os.kill(held[0], signal.SIGKILL)
    slurm("scancel", f"{job}_1")
    slurm("scontrol", "requeue", f"{job}_2")
    with contextlib.suppress(ProcessLookupError):
        os.kill(held[2], signal.SIGCONT)  # in case SIGTERM waits for it
    found = finish(run)
    assert found["cells"]["done"] == 9
    ledger, _ = read_ledger(RunFolder(run))
    assert len(ledger) == 2, "one retry for the killed and the cancelled task"
    assert {c for task in ledger[1].tasks for c in task} == {*item.tasks[0], *item.tasks[1]}
    assert read_tables(run) == undisturbed(few)


def test_a_killed_step_is_lost_and_says_so(bed, few, cli, settled, finish, tmp_path, undisturbed, wait_for):
    run = tmp_path / "run"
    [job] = submit(cli, few, run, pack="9")
    held = caught(job, 1)
    step = int(Path(f"/proc/{held[0]}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (step, held[0]):  # the step's own daemon first: it cannot report any more
        os.kill(pid, signal.SIGKILL)
    found = settled(run)
    assert sum(found["failed_by_cause"].values()) == 9
    assert set(found["failed_by_cause"]) <= {"LOST", "NODE"}, found["states"]
    cell = next(iter(found["states"]))
    said = cli("logs", run, cell[:8]).out
    assert f"next: sparsehpc retry {run}" in said
    finish(run)
    assert read_tables(run) == undisturbed(few)


def test_too_little_memory_gets_twice_as_much(bed, study_folder, few, cli, settled, finish, tmp_path, undisturbed):
    study, run = write_study(study_folder, "few", {"memory_gib = 1": "memory_gib = 0.125"}), tmp_path / "run"
    submit(cli, study, run, pack="9")
    found = settled(run)
    assert found["failed_by_cause"] == {"OOM": 9}
    finish(run)
    asked = [item.resources["memory_gib"] for item in read_ledger(RunFolder(run))[0]]
    assert asked == [0.125 * 2**n for n in range(len(asked))]
    assert read_tables(run) == undisturbed(few)


@pytest.fixture(scope="module")
def short_jobs(bed, study_folder, write_profile, tmp_path_factory):
    """Two runs with short jobs, held on c1 with a layer done, while other tests go on beside them.

    ``ended`` has no warning and is held until the wall time ends it; ``warned`` is held until Slurm has sent the
    warning signal, and goes on then. Of each the run folder and what holds it.
    """
    from jobs.plan import make_plan
    from jobs.propose import propose
    from jobs.study import load_study
    from jobs.submit import send_all
    from slurm.profile_file import load_profile

    def send(name, minutes, job):
        changes = {"minutes = 15": f"minutes = {minutes}\ncheckpoint_layers = true"}
        study = load_study(write_study(study_folder, "few", changes))
        profile = load_profile(write_profile("", "min_minutes = 1"))
        profile = profile.model_copy(update={"job": profile.job.model_copy(update={"nodelist": "c1", **job})})
        plan, run = make_plan(study), tmp_path_factory.mktemp(name) / "run"
        proposal = propose(study, plan, profile, out=run, pack=9)
        [submission] = send_all(proposal, study, plan, profile, print, aggregate=False)
        return run, submission.job_id

    def hold(run, job_id, until):
        held = caught(job_id, 1, when=lambda: any(run.glob("checkpoints/*/state.json")))
        until(held[0])
        return held[0]

    def warning(pid):
        deadline = time.monotonic() + 150
        while not signal_waits(pid, signal.SIGUSR2):
            assert time.monotonic() < deadline, "Slurm sends no warning"
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):  # Slurm may have woken it itself
            os.kill(pid, signal.SIGCONT)

    with ThreadPoolExecutor(2) as pool:
        # Slurm warns up to a minute too early: here from the 55th second on, so that a second attempt comes to its end.
        jobs = {
            "ended": (1, {"unset": ["signal"]}, hold_to_the_end),
            "warned": (2, {"signal_delay_s": 5}, warning),
        }
        sent = {name: (*send(name, minutes, job), until) for name, (minutes, job, until) in jobs.items()}
        yield {name: (run, pool.submit(hold, run, job_id, until)) for name, (run, job_id, until) in sent.items()}


@pytest.fixture(autouse=True)
def _started_early(short_jobs):
    """The first test of this file starts them."""


def test_preempted_jobs_go_on_between_layers_by_themselves(
    bed, study_folder, few, cli, settled, profile, tmp_path, undisturbed, wait_for
):
    study = write_study(study_folder, "few", {"minutes = 15": "minutes = 15\ncheckpoint_layers = true"})
    run = tmp_path / "run"
    [job] = submit(cli, study, run, profile=profile("partition = 'spot'\nnodelist = 'c2'"), pack="9")
    held = caught(job, 1, when=lambda: any(run.glob("checkpoints/*/state.json")))
    urgent = slurm(
        "sbatch", "--parsable", "--partition=urgent", "--account=testbed", "--exclusive", "--nodelist=c2", "--time=1",
        "--output=/dev/null", "--wrap=sleep 1",
    )  # fmt: skip
    hold_to_the_end(held[0])
    wait_for(lambda: "PREEMPTED" in slurm("sacct", "-n", "-X", "-D", "-j", job, "-o", "State%20"), "preemption")
    assert urgent.strip().isdigit()
    found = settled(run)
    assert (found["cells"]["done"], len(read_ledger(RunFolder(run))[0])) == (9, 1)
    assert read_tables(run) == undisturbed(few)
    assert "restart 1" in next(run.glob("submissions/*/*_log.err")).read_text()
    assert begun_at_the_first_layer(run) == 1, "the second attempt, too, whatever the first had done"


def begun_at_the_first_layer(run):
    return next(run.glob("submissions/*/*_log.out")).read_text().count("layers 0/2")


def test_damaged_shards_are_seen_and_computed_again(bed, few, cli, settled, status, finish, tmp_path, undisturbed):
    """Truncated, bit-flipped, replaced by a folder, and row without figures."""
    run = tmp_path / "run"
    submit(cli, few, run, pack="9")
    found = settled(run)
    truncated, flipped, folder, bare, *_ = (RunFolder(run).cell(cell) for cell in found["states"])
    truncated.row.write_bytes(truncated.row.read_bytes()[:-100])
    data = bytearray(flipped.measurements.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.measurements.write_bytes(data)
    folder.row.unlink()
    folder.row.mkdir()
    bare.measurements.unlink()
    assert status(run)["cells"]["damaged"] == 3, "the flipped bit shows only when all is read"
    assert json.loads(cli("status", run, "--verify", "--json").out)["cells"]["damaged"] == 4
    cli("aggregate", run)
    assert status(run)["cells"]["damaged"] == 4, "what aggregation found stays known"
    finish(run)
    assert read_tables(run) == undisturbed(few)


def test_two_tasks_that_write_the_same_cells_at_once_leave_whole_shards(
    bed, few, cli, settled, profile, tmp_path, undisturbed
):
    """They also share one copy of the weights on their node, which the last one removes."""
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    staging = profile(f"stage_weights = true\nnodelist = 'c1'\nenvironment = {{ SPARSEHPC_SCRATCH = '{scratch}' }}")
    [first] = submit(cli, few, run, profile=staging, pack="9")
    [item], _ = read_ledger(RunFolder(run))
    folder = item.folder(RunFolder(run))

    def at_work(job):
        log = folder / f"{job}_0_0_log.out"
        return log.exists() and "layers 0/2" in log.read_text()

    held = [caught(first, 1, when=lambda: at_work(first))[0]]
    # The same array once more, as after a lost answer.
    second = slurm("sbatch", "--parsable", str(folder / "submit.sh")).strip()
    held.append(caught(second, 1, when=lambda: at_work(second))[0])
    assert slurm("squeue", "-h", "-t", "RUNNING", "-o", "%F", "-j", f"{first},{second}").split() == [first, second]
    assert not any(run.glob("cells/*/*/cell.parquet")), "one had written before the other began"
    [copy] = scratch.glob("sparsehpc-weights-*/*/model.safetensors")
    read = [(folder / f"{job}_0_0_log.out").read_text() for job in (first, second)]
    assert "node-local copy (SPARSEHPC_SCRATCH), made by this task" in read[0]
    assert "node-local copy (SPARSEHPC_SCRATCH), shared with other tasks" in read[1]
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    assert settled(run)["cells"]["done"] == 9
    for job in (first, second):
        outcome, counts = pickle.loads((folder / f"{job}_0_0_result.pkl").read_bytes())
        assert (outcome, counts) == ("success", {"done before": 0, "done now": 9})
    assert not copy.exists()
    assert list(scratch.iterdir()) == []
    assert read_tables(run) == undisturbed(few)


def test_a_full_disk_is_no_ones_bug(bed, few, cli, settled, finish, tmp_path, undisturbed):
    run = tmp_path / "mount"
    run.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=6m", "tmpfs", str(run)):
        run = run / "run"
        submit(cli, few, run, pack="9")
        filler = run.parent / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        found = settled(run)
        assert found["cells"]["done"] == 0
        assert set(found["failed_by_cause"]) <= {"NODE", "LOST"}, found
        filler.unlink()
        finish(run)
        assert read_tables(run) == undisturbed(few)


def test_a_read_only_run_folder_fails_clearly_and_recovers(
    bed, few, cli, settled, finish, profile, tmp_path, undisturbed
):
    run, place = tmp_path / "place" / "run", tmp_path / "place"
    place.mkdir()
    with mounted("--bind", str(place), str(place)):
        [job] = submit(cli, few, run, profile=profile("extra = { hold = true }"), pack="9")
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        slurm("scontrol", "release", job)
        found = settled(run)
        assert sum(found["failed_by_cause"].values()) == 9, found["states"]
        assert set(found["failed_by_cause"]) <= {"NODE", "LOST"}, found["states"]
        refused = cli("retry", run, "--yes", "--profile", "testbed")
        assert refused.code == 2, refused.said
        assert "cannot be written" in refused.err
        subprocess.run(["mount", "-o", "remount,rw,bind", str(place)], check=True)
        finish(run, "--profile", "testbed")
        assert read_tables(run) == undisturbed(few)


def test_a_node_whose_clock_is_wrong(bed, few, cli, settled, profile, tmp_path, undisturbed):
    library = next(Path("/usr/lib").rglob("libfaketime.so.1"), None)
    if library is None:
        cannot("no libfaketime; apt-get install -y libfaketime")
    run = tmp_path / "run"
    skewed = profile(
        f"environment = {{ FAKETIME = '-3d', LD_PRELOAD = '{library}', FAKETIME_DONT_FAKE_MONOTONIC = '1' }}"
    )
    submit(cli, few, run, profile=skewed, pack="9")
    found = settled(run)
    assert found["cells"]["done"] == 9, found
    assert read_tables(run) == undisturbed(few)


def test_code_changed_after_submission_is_said(bed, few, cli, settled, profile, tmp_path, undisturbed):
    run, copy = tmp_path / "run", tmp_path / "copy"
    root = Path(__file__).parents[2]
    for package in ("sparsehpc", "jobs", "slurm", "aggregate"):
        shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / "jobs" / "pack.py"
    changed.write_text(changed.read_text() + "\n# another line\n")
    submit(cli, few, run, profile=profile(f"environment = {{ PYTHONPATH = '{copy}' }}"), pack="9")
    found = settled(run)
    assert found["cells"]["done"] == 9
    assert any("ran code that was changed after it was submitted" in problem for problem in found["problems"])
    assert "the project's code was changed" in next(run.glob("submissions/*/*_log.err")).read_text()
    assert read_tables(run) == undisturbed(few)


def test_two_members_of_a_group_with_umasks_of_their_own_share_a_run(
    bed, few, cli, settled, profile, tmp_path, undisturbed
):
    """One submits half with umask 002, the other the rest with 077: each grant is kept, and what is closed is said."""
    place, group = tmp_path / "shared", 12121
    place.mkdir()
    chown_where_allowed(place, group)
    place.chmod(0o2775)
    run, seen = place / "run", {}
    held = profile("extra = { hold = true }")
    with umask(0o002):
        [job] = submit(cli, few, run, profile=held, pack="5")
    slurm("scancel", f"{job}_1")
    slurm("scontrol", "release", job)
    for mask in (0o002, 0o077):
        found = settled(run)
        rows = {RunFolder(run).cell(cell).row for cell, state in found["states"].items() if state["state"] == "done"}
        for row in rows - seen.keys():
            seen[row] = mask
            assert stat.S_IMODE(row.stat().st_mode) == 0o666 & ~mask
            assert row.stat().st_gid == place.stat().st_gid
        with umask(0o077):
            cli("retry", run, "--yes", "--no-aggregate", "--profile", "testbed")
    assert sorted(seen.values()) == [0o002] * 5 + [0o077] * 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.glob("submissions/*/payload.pkl")} == {0o600}
    own = [*run.glob("submissions/*/"), *run.glob("submissions/*/submit.sh")]
    assert (len(own), [path for path in own if path.stat().st_mode & 0o022]) == (4, [])
    assert read_tables(run) == undisturbed(few)
    # The first member looks: root without its right to read whatever the mode says, and the files are another's.
    for path in (row for row, mask in seen.items() if mask == 0o077):
        for part in (path, path.parent):
            chown_where_allowed(part, group, 12345)
    as_another = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m", "jobs", "status"]
    answer = subprocess.run([*as_another, str(run), "--cells", "--json"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert (found["cells"]["done"], found["cells"]["damaged"]) == (5, 4)
    reasons = [state["reason"] for state in found["states"].values() if state["state"] == "damaged"]
    assert all("Permission denied" in reason for reason in reasons), reasons


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def chown_where_allowed(path, group, owner=-1):
    try:
        os.chown(path, owner, group)
    except PermissionError:
        cannot("giving files to another user or group needs root", "CAP_CHOWN")


def test_a_payload_that_others_could_have_written_is_not_run(bed, few, cli, settled, finish, profile, tmp_path):
    run = tmp_path / "run"
    [job] = submit(cli, few, run, profile=profile("extra = { hold = true }"), pack="9")
    next(run.glob("submissions/*/payload.pkl")).chmod(0o620)
    slurm("scontrol", "release", job)
    found = settled(run)
    assert found["failed_by_cause"] == {"CODE": 9}
    cell = next(iter(found["states"]))
    assert "can be written by others" in cli("logs", run, cell).out
    finish(run, "--force", "--profile", "testbed")


def test_too_little_time_gets_more(few, finish, settled, short_jobs, undisturbed):
    """The wall time ends it in the middle of computing."""
    run, holding = short_jobs["ended"]
    holding.result(timeout=240)
    found = settled(run)
    assert found["failed_by_cause"] == {"TIME": 9}
    assert begun_at_the_first_layer(run) == 1
    finish(run, "--profile", "testbed")
    assert [item.resources["minutes"] for item in read_ledger(RunFolder(run))[0]] == [1, 15]
    assert read_tables(run) == undisturbed(few)


def test_a_job_that_is_warned_before_its_time_is_up_goes_on_by_itself(few, settled, short_jobs, undisturbed):
    """Slurm's signal, the checkpoint, the requeue, the second attempt from the layer that was done."""
    run, holding = short_jobs["warned"]
    holding.result(timeout=240)
    found = settled(run)
    assert (found["cells"]["done"], len(read_ledger(RunFolder(run))[0])) == (9, 1)
    log = next(run.glob("submissions/*/*_log.err")).read_text()
    assert "Caught signal SIGUSR2" in log
    assert "restart 1" in log
    assert begun_at_the_first_layer(run) == 1, "the second attempt, too, whatever the first had done"
    assert read_tables(run) == undisturbed(few)


@contextlib.contextmanager
def mounted(*words):
    """A mount for the time of a test; skipped where this user may not mount."""
    answer = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if answer.returncode:
        cannot(f"mounting needs root: {answer.stderr.strip()}", "CAP_SYS_ADMIN")
    try:
        yield
    finally:
        for _ in range(20):
            if subprocess.run(["umount", words[-1]], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.5)

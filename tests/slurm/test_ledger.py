import datetime
import json
import os
import subprocess
import sys

import pytest

from slurm import ledger
from slurm.answers import TaskState
from slurm.lock import submitting
from slurm.queue import Snapshot
from slurm.track import Tracker, settle, track
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder

CELLS = [f"{n:020x}" for n in range(4)]


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def submission(run, *tasks, **fields):
    made = ledger.new_submission("run", tasks=tasks, resources={"name": "cpu", "memory_gib": 1.0}, **fields)
    made.folder(run).mkdir(parents=True)
    (made.folder(run) / "payload.pkl").touch()
    ledger.record(run, made)
    return made


class FixedQueue:
    def __init__(self, tasks=None, queue=True, accounting=True):
        self.snapshot = Snapshot(tasks or {}, 0.0, queue_answered=queue, accounting_answered=accounting)

    def look(self, names, since, *, users=(), fresh=False):
        self.users = set(users)
        return self.snapshot


def test_what_is_written_is_read_back(run):
    made = submission(run, (CELLS[0], CELLS[1]), (CELLS[2],))
    done = ledger.record_fate(run, made, "accepted", job_id="12")
    assert ledger.read_ledger(run) == ([done], [])
    assert ledger.latest([done])[CELLS[2]] == (done, 1)


def test_names_are_unique_and_sort_by_time():
    made = [ledger.new_submission("a run/with odd\nname") for _ in range(100)]
    assert len({item.job_name for item in made}) == 100
    assert [item.submission_id for item in made] == sorted(item.submission_id for item in made)


def test_a_refused_submission_holds_no_cells(run):
    first = ledger.record_fate(run, submission(run, (CELLS[0],)), "accepted", job_id="1")
    ledger.record_fate(run, submission(run, (CELLS[0],)), "refused", words="no")
    assert ledger.latest(ledger.read_ledger(run)[0])[CELLS[0]] == (first, 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ledger.json", "{"),
        ("ledger.json", "[]"),
        ("job.json", "{}"),
        ("job.json", json.dumps({"fate": "accepted", "job_id": "1; rm", "words": ""})),
        ("job.json", json.dumps({"fate": "perhaps", "job_id": "1", "words": ""})),
    ],
)
def test_a_damaged_entry_is_said_and_the_others_are_read(run, name, text):
    broken, sound = submission(run, (CELLS[0],)), submission(run, (CELLS[1],))
    (broken.folder(run) / name).write_text(text)
    found, problems = ledger.read_ledger(run)
    assert [item.submission_id for item in found] == [sound.submission_id]
    assert len(problems) == 1
    assert broken.submission_id in problems[0]


@pytest.mark.parametrize(
    "change", [{"tasks": [["../../x"]]}, {"job_name": "a\nb"}, {"submission_id": "../x"}, {"uid": "0 --name=x"}]
)
def test_names_in_a_ledger_never_leave_the_run_folder(run, change):
    made = submission(run, (CELLS[0],))
    path = made.folder(run) / "ledger.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert ledger.read_ledger(run)[0] == []


def test_folders_without_a_ledger_were_never_submitted(run):
    (run.submissions / "20260101T000000000000-abcdef").mkdir(parents=True)
    (run.submissions / "something").mkdir()
    assert ledger.read_ledger(run) == ([], [])


def aged(run, made, seconds):
    path = made.folder(run) / "ledger.json"
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    path.write_text(json.dumps({**json.loads(path.read_text()), "created_at": when.isoformat()}))


def test_an_open_submission_is_found_by_its_name(run):
    made = submission(run, (CELLS[0],))
    tasks = {(made.job_name, 0): TaskState("44", 0, "PENDING")}
    tracker = settle(track(run, FixedQueue(tasks)))
    assert [(item.fate, item.job_id) for item in ledger.read_ledger(run)[0]] == [("accepted", "44")]
    assert tracker.places()[CELLS[0]].stand == "queued"


def test_an_open_submission_is_found_by_its_logs(run):
    made = submission(run, (CELLS[0],))
    (made.folder(run) / "45_0_0_log.err").touch()
    settle(track(run, FixedQueue()))
    assert ledger.read_ledger(run)[0][0].job_id == "45"


def test_an_open_submission_that_nobody_knows_is_refused_once_it_cannot_come_any_more(run):
    made = submission(run, (CELLS[0],))
    assert settle(track(run, FixedQueue())).places()[CELLS[0]].stand == "unclear", "sbatch may still be on its way"
    aged(run, made, 300)
    assert settle(track(run, FixedQueue(queue=False))).places()[CELLS[0]].stand == "unclear"
    assert settle(track(run, FixedQueue())).places() == {}
    assert ledger.read_ledger(run)[0][0].fate == "refused"
    assert not (made.folder(run) / "payload.pkl").exists(), "a job that comes all the same finds nothing to run"


@pytest.mark.parametrize(
    ("state", "stand"),
    [
        ("PENDING", "queued"),
        ("REQUEUED", "queued"),
        ("RUNNING", "running"),
        ("COMPLETING", "running"),
        ("FAILED", "ended"),
    ],
)
def test_where_a_cell_stands(run, state, stand):
    made = ledger.record_fate(run, submission(run, (CELLS[0],)), "accepted", job_id="1")
    tracker = track(run, FixedQueue({(made.job_name, 0): TaskState("1", 0, state)}))
    assert tracker.places()[CELLS[0]].stand == stand


def test_a_task_nobody_knows_has_ended_after_a_while(run):
    made = ledger.record_fate(run, submission(run, (CELLS[0],)), "accepted", job_id="1")
    assert track(run, FixedQueue()).places()[CELLS[0]].stand == "queued", "just accepted: it may not show yet"
    aged(run, made, 600)
    assert track(run, FixedQueue()).places()[CELLS[0]].stand == "ended"
    assert track(run, FixedQueue(queue=False)).places()[CELLS[0]].stand == "unclear"


def test_a_later_submission_speaks_for_a_cell(run):
    first = ledger.record_fate(run, submission(run, (CELLS[0], CELLS[1])), "accepted", job_id="1")
    second = ledger.record_fate(run, submission(run, (CELLS[1],)), "accepted", job_id="2")
    places = Tracker(run, (first, second), FixedQueue().snapshot, ()).places()
    assert (places[CELLS[0]].submission.job_id, places[CELLS[1]].submission.job_id) == ("1", "2")


def test_one_process_at_a_time_submits(run):
    with submitting(run), pytest.raises(UserError, match=f"process {os.getpid()} on"), submitting(run):
        pass
    with submitting(run):
        pass
    assert list(run.submissions.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(run):
    code = (
        "import os, signal, sys; from pathlib import Path; from slurm.lock import submitting\n"
        "from sparsehpc.core.layout import RunFolder\n"
        "with submitting(RunFolder(Path(sys.argv[1]))): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.root)], check=False)
    assert (run.submissions / ".submit.lock").exists()
    with submitting(run):
        pass


def test_the_lock_of_another_host_is_respected(run):
    run.submissions.mkdir()
    lock = run.submissions / ".submit.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    with pytest.raises(UserError, match=r"process 1 on elsewhere"), submitting(run):
        pass
    assert lock.exists()


def test_jobs_of_other_members_of_the_group_are_asked_for_too(run):
    theirs = ledger.record_fate(run, submission(run, (CELLS[0],)), "accepted", job_id="1")
    path = theirs.folder(run) / "ledger.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "uid": 12345}))
    old = submission(run, (CELLS[1],))
    path = old.folder(run) / "ledger.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "uid"}))
    queue = FixedQueue({(theirs.job_name, 0): TaskState("1", 0, "RUNNING")})
    assert track(run, queue).places()[CELLS[0]].stand == "running"
    assert queue.users == {12345}


def test_what_became_of_anothers_submission_is_known_and_left_to_them_to_write(run, monkeypatch):
    made = submission(run, (CELLS[0],))
    monkeypatch.setattr(os, "getuid", lambda: made.uid + 1)
    queue = FixedQueue({(made.job_name, 0): TaskState("12", 0, "PENDING")})
    tracker = settle(track(run, queue))
    assert [(item.fate, item.job_id) for item in tracker.submissions] == [("accepted", "12")]
    assert not (made.folder(run) / "job.json").exists()
    monkeypatch.undo()
    settle(track(run, queue))
    assert (made.folder(run) / "job.json").exists()

import datetime
import json
import os

from slurm.answers import REST, joined, parse_sacct, parse_squeue
from slurm.queue import Queue, tasks_in_queue

SQUEUE = """\
7|0|run-a|RUNNING|None|c1
7|1|run-a|PENDING|Resources|
7|[2-3,9%4]|run-a|PENDING|Resources|
8|N/A|run-b|CANCELLED|Dependency|
garbage
"""
SACCT = """\
7_0|run-a|COMPLETED|0:0||61|c1
7_0.batch|batch|COMPLETED|0:0|12376K|61|c1
7_0.0|python|COMPLETED|0:0|1.5G|60|c1
7_1|run-a|FAILED|9:0||3|c2
7_1.0|python|OUT_OF_MEMORY|0:125|900M|3|c2
7_2|run-a|CANCELLED by 1000|0:0||0|None assigned
7_[5-6]|run-a|PENDING|0:0||0|None assigned
"""
SINCE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def test_squeue_lines_become_tasks():
    tasks = parse_squeue(SQUEUE)
    assert tasks["run-a", 0].running
    assert (tasks["run-a", 1].waiting, tasks["run-a", 1].reason) == (True, "Resources")
    assert sorted(task for name, task in tasks if name == "run-a") == [0, 1, 2, 3, 9]
    assert tasks["run-b", REST].state == "CANCELLED"


def test_sacct_lines_of_steps_are_joined_to_their_task():
    tasks = parse_sacct(SACCT)
    assert (tasks["run-a", 0].state, tasks["run-a", 0].elapsed_s) == ("COMPLETED", 61)
    assert tasks["run-a", 0].peak_bytes == int(1.5 * 2**30)
    assert (tasks["run-a", 1].state, tasks["run-a", 1].exit_code) == ("OUT_OF_MEMORY", 9)
    assert (tasks["run-a", 2].state, tasks["run-a", 2].nodes) == ("CANCELLED", "")
    assert tasks["run-a", 6].waiting


def test_what_is_alive_comes_from_squeue_and_how_it_ended_from_accounting():
    accounted = parse_sacct("7_0|a|RUNNING|0:0||5|c1\n7_1|a|FAILED|1:0||5|c1\n7_2|a|RUNNING|0:0||9|c1\n")
    queued = parse_squeue("7|0|a|RUNNING|None|c1\n7|1|a|PENDING|BeginTime|\n")
    found = joined(queued, accounted)
    assert found["a", 0].running
    assert found["a", 1].waiting, "a requeued task is alive again"
    assert ("a", 2) not in found, "a record that was never closed is not believed"
    assert joined(None, accounted)["a", 2].running


class Scheduler:
    def __init__(self, **answers):
        self.answers, self.calls = answers, []

    def __call__(self, command):
        self.calls.append(command)
        return self.answers.get(command[0])


def test_one_question_a_minute_for_all_jobs(tmp_path):
    scheduler = Scheduler(squeue=SQUEUE, sacct=SACCT)
    queue = Queue(tmp_path, interval_s=60, run=scheduler)
    first = queue.look(["run-a", "run-b"], SINCE)
    assert [command[0] for command in scheduler.calls] == ["sacct", "squeue"]
    assert "--name=run-a,run-b" in scheduler.calls[0]
    assert [f"--user={os.getuid()}" in command for command in scheduler.calls] == [True, True]
    second = Queue(tmp_path, interval_s=60, run=scheduler).look(["run-a"], SINCE)
    assert len(scheduler.calls) == 2, "another process reads the answer of the first"
    assert second.tasks == first.tasks
    queue.look(["run-c"], SINCE)
    assert len(scheduler.calls) == 4, "a job that was not asked for is a new question"
    queue.look(["run-c"], SINCE, users=[4242], fresh=True)
    assert len(scheduler.calls) == 6
    assert f"--user={','.join(map(str, sorted((os.getuid(), 4242))))}" in scheduler.calls[-1]


def test_accounting_that_is_down_is_said_and_what_was_known_stays(tmp_path):
    Queue(tmp_path, run=Scheduler(squeue="", sacct=SACCT)).look(["run-a"], SINCE)
    found = Queue(tmp_path, run=Scheduler(squeue="")).look(["run-a"], SINCE, fresh=True)
    assert found.problems == ["sacct did not answer: causes come from files and from squeue only"]
    assert found.tasks["run-a", 1].state == "OUT_OF_MEMORY"


def test_a_scheduler_that_is_down_is_said(tmp_path):
    found = Queue(tmp_path, run=Scheduler()).look(["run-a"], SINCE)
    assert (found.queue_answered, found.accounting_answered, len(found.problems)) == (False, False, 2)


def test_no_sacct_where_there_is_no_accounting(tmp_path):
    scheduler = Scheduler(squeue=SQUEUE)
    assert Queue(tmp_path, accounting=False, run=scheduler).look(["run-a"], SINCE).problems == []
    assert [command[0] for command in scheduler.calls] == ["squeue"]


def test_a_damaged_cache_is_asked_over(tmp_path):
    scheduler = Scheduler(squeue=SQUEUE, sacct=SACCT)
    for text in ("", "{", json.dumps({"names": ["run-a"], "asked_at": 9e12, "tasks": [["x"]]})):
        (tmp_path / "queue.json").write_text(text)
        assert Queue(tmp_path, run=scheduler).look(["run-a"], SINCE).tasks["run-a", 0].state


def test_a_cache_from_the_future_is_not_believed(tmp_path):
    scheduler = Scheduler(squeue=SQUEUE, sacct=SACCT)
    queue = Queue(tmp_path, run=scheduler)
    queue.look(["run-a"], SINCE)
    cached = json.loads((tmp_path / "queue.json").read_text())
    (tmp_path / "queue.json").write_text(json.dumps({**cached, "asked_at": cached["asked_at"] + 1e6}))
    queue.look(["run-a"], SINCE)
    assert len(scheduler.calls) == 4


def test_nothing_submitted_asks_nothing(tmp_path):
    scheduler = Scheduler()
    assert Queue(tmp_path, run=scheduler).look([], SINCE).problems == []
    assert scheduler.calls == []


def test_tasks_in_queue():
    assert tasks_in_queue(Scheduler(squeue="RUNNING\nPENDING\nPENDING\n")) == 3
    assert tasks_in_queue(Scheduler()) is None

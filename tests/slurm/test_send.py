"""sbatch that fails, lies or does not answer: the job is there once, and the ledger says so."""

import pytest

from slurm import ledger
from slurm import send as sending
from slurm.answers import TaskState
from slurm.executor import SubmissionRefused, SubmissionUnclear
from slurm.profile import Limits
from slurm.queue import Snapshot
from slurm.send import QueueFull, send
from sparsehpc.core.layout import RunFolder


class FakeScheduler:
    """Answers of sbatch in turn; ``accepted`` says after how many calls the job is there whatever sbatch said."""

    def __init__(self, *answers, accepted_after=None, answers_at_all=True):
        self.answers, self.accepted_after, self.answers_at_all = list(answers), accepted_after, answers_at_all
        self.calls = 0

    def sbatch(self, script, timeout_s):
        self.calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def look(self, names, since, *, users=(), fresh):
        there = self.accepted_after is not None and self.calls >= self.accepted_after
        tasks = {(names[0], 0): TaskState("99", 0, "PENDING")} if there else {}
        return Snapshot(tasks, 0.0, queue_answered=self.answers_at_all, accounting_answered=self.answers_at_all)


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)

    def call(scheduler):
        monkeypatch.setattr(sending, "call_sbatch", scheduler.sbatch)
        run, said = RunFolder(tmp_path), []
        submission = ledger.new_submission("run", tasks=(("0" * 20,),))
        submission.folder(run).mkdir(parents=True)
        try:
            sent = send(run, submission, tmp_path / "x", scheduler, Limits(), said.append)
        finally:
            [kept] = ledger.read_ledger(run)[0]
        return sent, kept, said

    return call


def test_an_id_is_an_id(attempt):
    sent, kept, said = attempt(FakeScheduler("12"))
    assert (sent.fate, sent.job_id, kept, said) == ("accepted", "12", sent, [])


def test_an_error_that_was_none_is_found_by_name(attempt):
    scheduler = FakeScheduler(SubmissionRefused("Batch job submission failed: Socket timed out"), accepted_after=1)
    sent, kept, said = attempt(scheduler)
    assert (sent.job_id, kept.fate, scheduler.calls) == ("99", "accepted", 1)
    assert "the job is there" in said[0]


def test_no_answer_and_no_job_is_tried_again(attempt):
    scheduler = FakeScheduler(SubmissionUnclear("sbatch did not answer within 1 s"), "13")
    sent, _, said = attempt(scheduler)
    assert (sent.job_id, scheduler.calls) == ("13", 2)
    assert "next try" in said[0]


def test_without_any_answer_the_fate_stays_open(attempt):
    scheduler = FakeScheduler(SubmissionUnclear("sbatch did not answer within 1 s"), answers_at_all=False)
    sent, kept, said = attempt(scheduler)
    assert (sent.fate, kept.fate, scheduler.calls) == ("open", "open", 1)
    assert "the next submit finds out" in said[-1]


def test_a_scheduler_that_stays_away_is_not_asked_for_ever(attempt):
    scheduler = FakeScheduler(*[SubmissionRefused("Unable to contact slurm controller")] * 9)
    sent, _, _ = attempt(scheduler)
    assert (sent.fate, scheduler.calls) == ("open", 4)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Batch job submission failed: Invalid qos specification", SubmissionRefused),
        ("sbatch: error: AssocMaxSubmitJobLimit\nJob violates accounting/QOS policy", QueueFull),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", QueueFull),
    ],
)
def test_a_refusal_is_passed_on_with_sbatchs_words(attempt, tmp_path, words, kind):
    with pytest.raises(SubmissionRefused, match=words.splitlines()[0]) as caught:
        attempt(FakeScheduler(SubmissionRefused(words)))
    assert type(caught.value) is kind
    [kept] = ledger.read_ledger(RunFolder(tmp_path))[0]
    assert (kept.fate, kept.words) == ("refused", words)

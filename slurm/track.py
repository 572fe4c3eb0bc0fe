"""Where every cell of a run stands on the cluster: ledger, scheduler and logs put together."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import time
from pathlib import Path
from typing import Literal

from slurm import ledger
from slurm.answers import TaskState
from slurm.causes import Verdict, classify, read_tail, task_log
from slurm.ledger import Submission
from slurm.queue import Queue, Snapshot
from slurm.resources import Resources
from slurm.task import PAYLOAD
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.machine import file_system

#: ``none``: never sent; ``queued`` and ``running``: on their way; ``ended``: whatever is to come of it has come;
#: ``unclear``: nobody can say at the moment.
Stand = Literal["none", "queued", "running", "ended", "unclear"]

#: A job that was accepted so recently may not show yet.
_GRACE = datetime.timedelta(seconds=90)
#: These cache what a folder holds, NFS for up to a minute.
_SHOW_LATE, _SHOWING_S = re.compile(r"nfs|cifs|smb|9p|afs|fuse"), 75.0


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The latest task that was to compute a cell.

    Parameters
    ----------
    submission
        Its submission.
    task
        Index in the array.
    stand
        Where it stands.
    state
        The scheduler's word, where it has one.
    """

    submission: Submission
    task: int
    stand: Stand
    state: TaskState | None

    @property
    def resources(self) -> Resources:
        """What it asked for."""
        return Resources(**self.submission.resources)

    def log(self, run: RunFolder, stream: Literal["out", "err"] = "err") -> Path:
        """Log of the task."""
        job_id = self.state.job_id if self.state is not None else self.submission.job_id
        return task_log(self.submission.folder(run), job_id, self.task, stream)

    def ended_just_now(self, run: RunFolder) -> bool:
        """Whether it ended well so recently that a network file system need not show its product yet."""
        if self.state is None or self.state.state != "COMPLETED":
            return False
        try:
            recent = time.time() - self.log(run).stat().st_mtime < _SHOWING_S
        except OSError:
            return False
        return recent and bool(_SHOW_LATE.match(file_system(run.root)))

    def verdict(self, run: RunFolder) -> Verdict:
        """Why it ended without its product."""
        return classify(self.state, read_tail(self.log(run)), self.resources.memory_mib << 20)


@dataclasses.dataclass(frozen=True, slots=True)
class Tracker:
    """Everything known about the submissions of a run.

    Parameters
    ----------
    run
        The run folder.
    submissions
        All that can be read, oldest first.
    snapshot
        The scheduler's answer.
    problems
        What a reader has to know: damaged ledgers, a scheduler that does not answer.
    """

    run: RunFolder
    submissions: tuple[Submission, ...]
    snapshot: Snapshot
    problems: tuple[str, ...]

    def places(self) -> dict[str, Place]:
        """For every cell that was ever sent, the latest task that holds it."""
        found = {}
        tasks: dict[tuple[str, int], Place] = {}
        for cell_id, (submission, task) in ledger.latest(self.submissions).items():
            key = (submission.submission_id, task)
            if key not in tasks:
                state = self.snapshot.task(submission.job_name, task)
                tasks[key] = Place(submission, task, self._stand(submission, state), state)
            found[cell_id] = tasks[key]
        return found

    def _stand(self, submission: Submission, state: TaskState | None) -> Stand:
        if state is not None:
            return "running" if state.running else "queued" if state.waiting else "ended"
        if not self.snapshot.queue_answered or submission.fate == "open":
            return "unclear"
        young = datetime.datetime.now(datetime.UTC) - submission.made < _GRACE
        return "queued" if young and ledger.job_id_from_logs(submission.folder(self.run)) is None else "ended"

    def unfinished_jobs(self) -> list[Submission]:
        """Submissions with a task that waits or runs, or of which nobody can say."""
        active = {name for (name, _), state in self.snapshot.tasks.items() if state.active}
        return [
            submission
            for submission in self.submissions
            if submission.fate != "refused"
            and (submission.job_name in active or submission.fate == "open" or not self.snapshot.queue_answered)
        ]


def track(run: RunFolder, queue: Queue, *, fresh: bool = False) -> Tracker:
    """Read the ledger and ask the scheduler about everything in it, in one question."""
    submissions, problems = ledger.read_ledger(run)
    alive = [submission for submission in submissions if submission.fate != "refused"]
    since = min((submission.made for submission in alive), default=datetime.datetime.now(datetime.UTC))
    owners = {submission.uid for submission in alive if submission.uid >= 0}
    snapshot = queue.look((submission.job_name for submission in alive), since, users=owners, fresh=fresh)
    submissions = [_settled(run, submission, snapshot) for submission in submissions]
    return Tracker(run, tuple(submissions), snapshot, (*problems, *snapshot.problems))


def settle(tracker: Tracker) -> Tracker:
    """Write down what became of submissions whose sender was stopped before it could; to be called under the lock.

    Only of this user's own: other members of the group cannot write into each other's submissions, and find the fate
    anew at every look.
    """
    for item in tracker.submissions:
        if item.uid not in (-1, os.getuid()):
            continue
        folder = item.folder(tracker.run)
        if item.fate != "open" and not (folder / ledger.JOB).exists():
            if item.fate == "refused":
                # Should an sbatch that is still on its way be accepted after all, its tasks find nothing to run.
                (folder / PAYLOAD).unlink(missing_ok=True)
            ledger.record_fate(tracker.run, item, item.fate, job_id=item.job_id, words=item.words)
    return tracker


def _settled(run: RunFolder, submission: Submission, snapshot: Snapshot) -> Submission:
    """Fate of an open submission: by its logs, by the scheduler's list; refused only where both rule it out."""
    if submission.fate != "open":
        return submission
    from_logs = ledger.job_id_from_logs(submission.folder(run))
    ids = snapshot.ids(submission.job_name) | ({from_logs} if from_logs else set())
    if ids:
        return dataclasses.replace(
            submission, fate="accepted", job_id=min(ids, key=int), words="found by its name or its logs"
        )
    age = datetime.datetime.now(datetime.UTC) - submission.made
    if snapshot.queue_answered and age > _settling_time(snapshot):
        words = "the scheduler never had it: its sender was stopped before"
        return dataclasses.replace(submission, fate="refused", words=words)
    return submission


def _settling_time(snapshot: Snapshot) -> datetime.timedelta:
    """How long an sbatch that is still on its way may take; without accounting, until squeue forgets ended jobs."""
    return datetime.timedelta(seconds=15 if snapshot.accounting_answered else 60)

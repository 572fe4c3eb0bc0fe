"""Hand one script to the scheduler so that it is there exactly once, whatever sbatch says or does not say."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from slurm.executor import SubmissionRefused, SubmissionUnclear, call_sbatch
from slurm.ledger import Submission, record, record_fate
from slurm.profile import Limits
from slurm.queue import Queue
from sparsehpc.core.layout import RunFolder

#: The scheduler is busy, restarting or out of reach: worth another try.
_PASSING = re.compile(
    r"timed out|unable to contact|connection refused|temporarily|try again|slurm_receive_msg|communication"
    r"|zero bytes|protocol authentication|resource temporarily|transport endpoint",
    re.IGNORECASE,
)
#: As much as may be queued is queued: not an error, the rest goes later.
_FULL = re.compile(r"MaxSubmit|MaxJobs|SubmitLimit|MaxJobCount|violates accounting/QOS policy", re.IGNORECASE)
#: Seconds between looks for a job whose sbatch did not end well; then the fate stays open.
LOOKS_S = (0.0, 2.0, 5.0)
TRIES_S = (2.0, 5.0, 15.0)


class QueueFull(SubmissionRefused):
    """The scheduler takes no more jobs of this user for now."""


def send(
    run: RunFolder,
    submission: Submission,
    script: Path,
    queue: Queue,
    limits: Limits,
    report: Callable[[str], object],
) -> Submission:
    """Record a submission, call sbatch, record what became of it.

    Parameters
    ----------
    run, submission
        The run, and the submission whose payload and script lie in its folder.
    script
        The script.
    queue
        Asks the scheduler where sbatch gave no clear answer.
    limits
        Timeouts.
    report
        Called with lines for people.

    Returns
    -------
    Submission
        Accepted, with its job id; or still open, where nobody could say: the next ``submit`` finds out.

    Raises
    ------
    QueueFull
        For now no more jobs are taken.
    SubmissionRefused
        With sbatch's own words.
    """
    record(run, submission)
    for pause in (*TRIES_S, None):
        try:
            return record_fate(run, submission, "accepted", job_id=call_sbatch(script, limits.sbatch_timeout_s))
        except SubmissionUnclear as error:
            words = str(error)
        except SubmissionRefused as error:
            words = error.message
        job_id, answered = _look(queue, submission)
        if job_id:
            report(f"sbatch did not end well, yet the job is there (found by its name): {words.splitlines()[0]}")
            return record_fate(run, submission, "accepted", job_id=job_id, words=words)
        passing = bool(_PASSING.search(words)) or "did not answer" in words or "no job id" in words
        if not passing:
            record_fate(run, submission, "refused", words=words)
            raise (QueueFull if _FULL.search(words) else SubmissionRefused)(words)
        if not answered or pause is None:
            break
        report(f"{words.splitlines()[0]}; the scheduler does not have the job, next try in {pause:.0f} s")
        time.sleep(pause)
    report(f"it is not clear whether the scheduler has {submission.job_name}; the next submit finds out: {words}")
    return submission


def _look(queue: Queue, submission: Submission) -> tuple[str, bool]:
    """Id of the job with this name, and whether the scheduler answered at all."""
    answered = False
    for pause in LOOKS_S:
        time.sleep(pause)
        snapshot = queue.look([submission.job_name], submission.made, fresh=True)
        answered = answered or snapshot.queue_answered
        if ids := snapshot.ids(submission.job_name):
            return min(ids, key=int), True
    return "", answered

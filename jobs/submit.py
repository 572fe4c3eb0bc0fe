"""``sparsehpc submit``: cells that were never sent go to a cluster, one array of jobs per resource class.

Order of events for every array: folder, payload and script, ledger, sbatch, fate. Killed anywhere, a later ``submit``
finds in the ledger and in the scheduler's list what is on its way, and sends what is not. Cells that failed are not
sent again: that is `jobs.retry`, which knows the remedy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from submitit.core.utils import DelayedSubmission

from jobs.cell import CellJob
from jobs.inputs import fix_inputs
from jobs.plan import Plan
from jobs.propose import Array, Proposal, asked_for, require_answer, run_queue, sent_cells
from jobs.run import start
from jobs.spec import Study
from slurm.executor import SCRIPT, ClusterExecutor, SubmissionRefused
from slurm.ledger import Submission, new_submission
from slurm.limits import ask
from slurm.lock import submitting
from slurm.own import make_folder, write_file
from slurm.profile import Profile
from slurm.queue import Queue
from slurm.resources import Resources
from slurm.sbatch import sbatch_text
from slurm.script import aggregate_script
from slurm.send import QueueFull, send
from slurm.track import Tracker, settle, track
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.provenance import code_digest

Report = Callable[[str], object]

#: What the job that writes tables and report asks for.
AGGREGATE = Resources(name="aggregate", cpus=2, memory_gib=4, minutes=60)


def settle_run(run: RunFolder, profile: Profile) -> None:
    """Find out what became of submissions whose sender was stopped, and write it down."""
    if run.submissions.is_dir():
        with submitting(run):
            settle(track(run, run_queue(run, profile), fresh=True))


def send_all(
    proposal: Proposal, study: Study, plan: Plan, profile: Profile, report: Report, *, aggregate: bool = True
) -> list[Submission]:
    """Make the run folder and submit every array, politely, then the job that aggregates after all of them.

    Raises
    ------
    UserError
        A model is not prepared, a corpus is too short, the folder is another study's, another process submits, or
        sbatch refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on this machine", "sparsehpc testbed up starts a private cluster to try things on"
        )
    run, _ = start(study, plan, proposal.run.root, quiet=True)
    run = RunFolder(run.root.absolute())
    fix_inputs(run, study, plan.cells)
    return send_arrays(run, proposal.arrays, profile, report, aggregate=aggregate)


def send_arrays(
    run: RunFolder,
    arrays: Sequence[Array],
    profile: Profile,
    report: Report,
    *,
    aggregate: bool = True,
    again: Collection[str] = (),
) -> list[Submission]:
    """Submit arrays of an existing run; see `send_all`.

    Parameters
    ----------
    again
        Cells that were sent before and ended: only these may be sent a second time.
    """
    queue, sent = run_queue(run, profile), list[Submission]()
    with submitting(run), _writable(run):
        tracker = settle(track(run, queue, fresh=True))
        require_answer(tracker)
        queued, ended = sent_cells(tracker)
        for number, array in enumerate(arrays):
            if number:
                time.sleep(profile.limits.submit_interval_s)
            ids = tuple(tuple(cell.cell_id for cell in task) for task in array.tasks)
            if taken := {cell_id for task in ids for cell_id in task} & (queued | (ended - set(again))):
                raise UserError(
                    f"{len(taken)} of these cells were sent by another process in the meantime",
                    f"sparsehpc status {run.root}, then submit again",
                )
            try:
                submission = _send_array(run, array, ids, profile, queue, report)
            except QueueFull as full:
                report(f"the queue is full ({full.message.splitlines()[-1]}); submit again later: it sends the rest")
                break
            if submission.fate != "accepted":
                break
            report(f"job {submission.job_id}: {len(ids)} tasks, {array.cells} cells of class {array.resources.name}")
            sent.append(submission)
        if aggregate and sent:
            send_aggregation(run, profile, tracker, sent, queue, report)
        queue.forget()
    return sent


@contextlib.contextmanager
def _writable(run: RunFolder) -> Iterator[None]:
    """Turn a disk that is full or read-only in the middle into one clear error."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{run.submissions} cannot be written: {error.strerror}",
            "what was sent stays sent; submit again once it can be",
        ) from error


def _send_array(
    run: RunFolder, array: Array, ids: tuple[tuple[str, ...], ...], profile: Profile, queue: Queue, report: Report
) -> Submission:
    submission = new_submission(
        run.root.name,
        resources=dataclasses.asdict(array.resources),
        profile=profile.name,
        tasks=ids,
        code_digest=code_digest(),
    )
    cluster = profile.excluding(array.exclude)
    executor = ClusterExecutor(submission.folder(run), array.resources, cluster, submission.job_name)
    script = executor.prepare([DelayedSubmission(CellJob(str(run.root), task)) for task in ids])
    return send(run, submission, script, queue, profile.limits, report)


def send_aggregation(
    run: RunFolder, profile: Profile, before: Tracker, sent: Sequence[Submission], queue: Queue, report: Report
) -> None:
    """Submit the job that aggregates once all arrays have ended; one that still waits from before is replaced."""
    waiting = [item for item in before.unfinished_jobs() if item.purpose == "aggregate" and item.job_id]
    arrays = [item for item in before.unfinished_jobs() if item.purpose == "cells" and item.job_id]
    submission = new_submission(
        run.root.name, purpose="aggregate", resources=dataclasses.asdict(AGGREGATE), profile=profile.name
    )
    folder = submission.folder(run)
    make_folder(folder)
    after = sorted({item.job_id for item in (*arrays, *sent)}, key=int)
    script = folder / SCRIPT
    text = aggregate_script(run.root, submission.job_name, folder, after, asked_for(AGGREGATE, profile), profile)
    write_file(script, text.encode())
    try:
        submission = send(run, submission, script, queue, profile.limits, report)
    except SubmissionRefused as error:
        report(f"the job that aggregates was refused ({error.message}); afterwards: sparsehpc aggregate {run.root}")
        return
    if submission.fate == "accepted":
        report(f"job {submission.job_id}: tables and report, once all cells have ended")
        for old in waiting:
            ask(["scancel", old.job_id])


def script_of(array: Array, profile: Profile, run: RunFolder, number: int) -> str:
    """Exact script of an array, but for the submission's own name, which a dry run does not know."""
    name = f"{run.root.name}-{number}"
    return sbatch_text(
        profile.excluding(array.exclude), array.resources, run.submissions / f"{number}", len(array.tasks), name
    )

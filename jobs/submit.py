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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from jobs.cell import CellJob
from jobs.folder import default_folder
from jobs.inputs import fix_inputs
from jobs.plan import Plan
from jobs.price import Prices, load_prices
from jobs.run import start
from jobs.spec import Study
from jobs.states import cell_states
from slurm.executor import ClusterExecutor, SubmissionRefused
from slurm.ledger import Submission, new_submission
from slurm.limits import ClusterLimits, array_tasks, ask, free_slots, read_limits, split
from slurm.lock import submitting
from slurm.profile import Profile
from slurm.queue import Queue, tasks_in_queue
from slurm.resources import Resources
from slurm.sbatch import sbatch_text
from slurm.script import aggregate_script
from slurm.send import QueueFull, send
from slurm.track import Tracker, settle, track
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.provenance import code_digest
from sparsehpc.core.shards import ShardState
from sparsehpc.core.spec import Cell

Report = Callable[[str], object]

_NO_ANSWER, _LATER = (
    "squeue does not answer: without it cells could be sent twice",
    "try again when the scheduler answers",
)

#: Cells that share one pass over a model at most: beyond that an interruption costs more than sharing saves.
CELLS_A_JOB = 20
#: The estimate may be wrong by so much before the wall time ends a job.
HEADROOM = 2.0
#: What the job that writes tables and report asks for.
AGGREGATE = Resources(name="aggregate", cpus=2, memory_gib=4, minutes=60)


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """One array of jobs to be.

    Parameters
    ----------
    resources
        What each task asks for.
    tasks
        Cells of each task.
    minutes
        Estimated minutes of all tasks together.
    exclude
        Nodes to leave out.
    """

    resources: Resources
    tasks: tuple[tuple[Cell, ...], ...]
    minutes: float
    exclude: str = ""

    @property
    def cells(self) -> int:
        """Cells of all tasks."""
        return sum(map(len, self.tasks))

    def hours(self, unit: str = "cpus", *, asked: bool = False) -> float:
        """Hours of cores (``cpus``) or GPUs (``gpus``): estimated, or the most that the wall times allow."""
        minutes = len(self.tasks) * self.resources.minutes if asked else self.minutes
        return float(getattr(self.resources, unit)) * minutes / 60


@dataclasses.dataclass(frozen=True, slots=True)
class Proposal:
    """What a submission would do.

    Parameters
    ----------
    run
        The run folder, which may not exist yet.
    arrays
        Arrays that can go now.
    done, queued, failed, later
        Cells that are done, wait or run, ended without a product (see `jobs.retry`), exceed what may be queued now.
    problems
        What a reader has to know.
    """

    run: RunFolder
    arrays: tuple[Array, ...]
    done: int = 0
    queued: int = 0
    failed: int = 0
    later: int = 0
    problems: tuple[str, ...] = ()

    def hours(self, unit: str = "cpus", *, asked: bool = False) -> float:
        """Of all arrays; see `Array.hours`."""
        return sum(array.hours(unit, asked=asked) for array in self.arrays)

    @property
    def cells(self) -> int:
        """Cells to send now."""
        return sum(array.cells for array in self.arrays)


def run_queue(run: RunFolder, profile: Profile) -> Queue:
    """Ask the scheduler about a run, at the profile's pace."""
    limits = profile.limits
    return Queue(run.submissions, interval_s=limits.poll_interval_s, accounting=limits.accounting)


def settle_run(run: RunFolder, profile: Profile) -> None:
    """Find out what became of submissions whose sender was stopped, and write it down."""
    if run.submissions.is_dir():
        with submitting(run):
            settle(track(run, run_queue(run, profile), fresh=True))


def propose(
    study: Study,
    plan: Plan,
    profile: Profile,
    *,
    out: Path | None = None,
    pack: int | None = None,
    ask_cluster: bool = True,
) -> Proposal:
    """Decide which cells go in which arrays; writes nothing.

    Parameters
    ----------
    study, plan
        What is wanted.
    profile
        The cluster.
    out
        Run folder; default ``runs/NAME``.
    pack
        Exactly so many cells a job; default: by estimated minutes.
    ask_cluster
        Read live limits and the queue; a dry run does without.
    """
    run = RunFolder((out if out is not None else default_folder(study)).absolute())
    ids = [cell.cell_id for cell in plan.cells]
    states = cell_states(run, ids) if run.plan.exists() else dict.fromkeys(ids, ShardState("missing"))
    unfinished = [cell for cell, cell_id in zip(plan.cells, ids, strict=True) if states[cell_id].state != "done"]
    queued, failed, problems = set[str](), set[str](), tuple[str, ...]()
    if run.plan.exists():
        tracker = track(run, run_queue(run, profile), fresh=ask_cluster)
        if ask_cluster:
            _answered(tracker)
        queued, failed = _sent(tracker)
        problems = tracker.problems if ask_cluster else ()
    waiting = [cell for cell in unfinished if cell.cell_id not in queued and cell.cell_id not in failed]
    limits, slots = room(profile) if ask_cluster else (ClusterLimits(), None)
    prices = load_prices(study, run)
    arrays, later = make_arrays(waiting, study.resources, profile, limits, slots, prices, pack=pack)
    open_ids = {cell.cell_id for cell in unfinished}
    return Proposal(
        run=run,
        arrays=tuple(arrays),
        done=len(plan.cells) - len(unfinished),
        queued=len(open_ids & queued),
        failed=len(open_ids & failed),
        later=later,
        problems=problems,
    )


def whole_price(plan: Plan, profile: Profile) -> list[Array]:
    """Arrays of all cells of a plan, as if nothing were done and the queue had no end: what the study costs."""
    prices = load_prices(plan.study, RunFolder(default_folder(plan.study)))
    return make_arrays(plan.cells, plan.study.resources, profile, ClusterLimits(), None, prices)[0]


def room(profile: Profile) -> tuple[ClusterLimits, int | None]:
    """Live limits, and how many tasks may be submitted now; None: no limit is known."""
    queued = tasks_in_queue()
    if queued is None:
        raise UserError(_NO_ANSWER, _LATER)
    limits = read_limits(accounting=profile.limits.accounting)
    return limits, free_slots(profile.limits, limits, queued)


def make_arrays(
    cells: Sequence[Cell],
    classes: Mapping[str, Resources],
    profile: Profile,
    limits: ClusterLimits,
    slots: int | None,
    prices: Prices,
    *,
    pack: int | None = None,
    exclude: str = "",
) -> tuple[list[Array], int]:
    """Cells in jobs, jobs in arrays, and how many cells have to wait until there is room in the queue."""
    arrays: list[Array] = []
    later = 0
    for name in dict.fromkeys(cell.resource for cell in cells):
        resources = asked_for(classes[name], profile)
        own = [cell for cell in cells if cell.resource == name]
        target_s = 60 * min(profile.limits.minutes_per_job, resources.minutes / HEADROOM)
        jobs = prices.packs(own, float("inf") if pack else target_s, pack or CELLS_A_JOB)
        now = jobs if slots is None else jobs[:slots]
        slots = None if slots is None else slots - len(now)
        later += sum(map(len, jobs[len(now) :]))
        arrays += [
            Array(resources, tuple(part), sum(map(prices.seconds, part)) / 60, exclude)
            for part in split(now, array_tasks(profile.limits, limits))
        ]
    return arrays, later


def asked_for(resources: Resources, profile: Profile) -> Resources:
    """What a job of a class asks for on this cluster: at least the profile's least wall time, within its limits."""
    limits = profile.limits
    minutes = max(resources.minutes, limits.min_minutes)
    return dataclasses.replace(resources, minutes=min(minutes, limits.max_minutes) if limits.max_minutes else minutes)


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
        _answered(tracker)
        queued, ended = _sent(tracker)
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
    folder.mkdir(parents=True)
    after = sorted({item.job_id for item in (*arrays, *sent)}, key=int)
    script = folder / "submit.sh"
    text = aggregate_script(run.root, submission.job_name, folder, after, asked_for(AGGREGATE, profile), profile)
    script.write_text(text, encoding="utf-8")
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


def class_totals(arrays: Sequence[Array]) -> list[tuple[object, ...]]:
    """One row per resource class: arrays, jobs, cells, memory, estimated and asked core-hours, GPU-hours."""
    rows: list[tuple[object, ...]] = []
    for name in dict.fromkeys(array.resources.name for array in arrays):
        own = [array for array in arrays if array.resources.name == name]
        first = own[0].resources
        hours = (
            sum(a.hours() for a in own),
            sum(a.hours(asked=True) for a in own),
            sum(a.hours("gpus") for a in own),
            sum(a.hours("gpus", asked=True) for a in own),
        )
        jobs, cells = sum(len(array.tasks) for array in own), sum(array.cells for array in own)
        asks = (f"{first.memory_gib:g}", first.minutes)
        rows.append((name, len(own), jobs, cells, *asks, *(f"{value:.2f}" for value in hours)))
    return rows


TOTALS = (
    "class", "arrays", "jobs", "cells", "GiB a job", "minutes a job",
    "core-hours", "core-hours at most", "GPU-hours", "GPU-hours at most",
)  # fmt: skip


def _answered(tracker: Tracker) -> None:
    if not tracker.snapshot.queue_answered:
        raise UserError(_NO_ANSWER, _LATER)


def _sent(tracker: Tracker) -> tuple[set[str], set[str]]:
    """Cells on their way, and cells whose task has ended."""
    places = tracker.places()
    ended = {cell_id for cell_id, place in places.items() if place.stand == "ended"}
    return places.keys() - ended, ended

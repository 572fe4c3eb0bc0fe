"""``sparsehpc submit``: open cells to a cluster, one array of jobs per resource class.

Order of events for every array: folder, payload and script, ledger, sbatch, ledger with the job's id. Killed anywhere,
a later ``submit`` finds in the ledgers and in the scheduler's list what is on its way, and sends what is not.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from jobs.cell import CellJob
from jobs.folder import default_folder
from jobs.inputs import fix_inputs
from jobs.local import submission_folder
from jobs.pack import packs
from jobs.plan import Plan
from jobs.run import open_cells, start
from jobs.spec import Study
from slurm.executor import ClusterExecutor, SubmissionUnclear
from slurm.ledger import Submission, submissions
from slurm.limits import array_tasks, free_slots, read_limits, split
from slurm.profile import Profile
from slurm.queue import cells_in_queue, live_tasks
from slurm.resources import Resources
from slurm.sbatch import job_name, sbatch_text
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """One array of jobs to be.

    Parameters
    ----------
    resources
        What each task asks for.
    tasks
        Cells of each task.
    folder, name
        Folder of the submission, and job name.
    """

    resources: Resources
    tasks: tuple[tuple[Cell, ...], ...]
    folder: Path
    name: str

    @property
    def core_hours(self) -> float:
        """Most core-hours it can take: cores times wall time asked for."""
        return len(self.tasks) * self.resources.cpus * self.resources.minutes / 60

    @property
    def gpu_hours(self) -> float:
        """Most GPU-hours it can take."""
        return len(self.tasks) * self.resources.gpus * self.resources.minutes / 60

    def script(self, profile: Profile) -> str:
        """The exact sbatch script."""
        return sbatch_text(profile, self.resources, self.folder, len(self.tasks), self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Proposal:
    """What a submission would do.

    Parameters
    ----------
    run
        The run folder, which may not exist yet.
    arrays
        Arrays that can go now.
    done, queued, later
        Cells that are done, that wait or run already, and that exceed what may be queued now.
    """

    run: RunFolder
    arrays: tuple[Array, ...]
    done: int
    queued: int
    later: int

    @property
    def core_hours(self) -> float:
        """Most core-hours that all arrays can take."""
        return sum(array.core_hours for array in self.arrays)


def propose(
    study: Study, plan: Plan, profile: Profile, *, out: Path | None = None, pack: int = 1, ask_cluster: bool = True
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
        Cells a job at most.
    ask_cluster
        Read live limits and the queue; a dry run does without.
    """
    run = RunFolder((out if out is not None else default_folder(study)).absolute())
    open_now = open_cells(run, plan.cells) if run.plan.exists() else list(plan.cells)
    done = len(plan.cells) - len(open_now)
    sent = submissions(run)
    most, slots, queued = profile.limits.max_array_tasks, None, set[str]()
    if ask_cluster:
        try:
            live = live_tasks()
        except SparseHPCError as error:
            raise UserError(
                f"{error}: without it cells could be sent twice", "try again when the scheduler answers"
            ) from error
        queued = cells_in_queue(sent, live)
        limits = read_limits(accounting=profile.limits.accounting)
        most = array_tasks(profile.limits, limits)
        slots = free_slots(profile.limits, limits, len(live))
    waiting = [cell for cell in open_now if cell.cell_id not in queued]
    jobs = packs(waiting, pack)
    now = jobs if slots is None else jobs[:slots]
    arrays = []
    for resource in dict.fromkeys(job[0].resource for job in now):
        tasks = [job for job in now if job[0].resource == resource]
        for part in split(tasks, most):
            name = job_name(f"{study.name[:40]}-{resource}-{uuid.uuid4().hex[:8]}")
            arrays.append(Array(study.resources[resource], tuple(part), submission_folder(run), name))
    return Proposal(
        run=run,
        arrays=tuple(arrays),
        done=done,
        queued=len(open_now) - len(waiting),
        later=sum(len(job) for job in jobs[len(now) :]),
    )


def send(
    proposal: Proposal, study: Study, plan: Plan, profile: Profile, report: Callable[[str], object]
) -> list[Submission]:
    """Make the run folder and submit every array, politely.

    Raises
    ------
    UserError
        A model is not prepared, a corpus is too short, the folder is another study's, or sbatch refuses.
    """
    # Before anything is written: the executor says where there is no Slurm.
    executors = [ClusterExecutor(array.folder, array.resources, profile, array.name) for array in proposal.arrays]
    run, _ = start(study, plan, proposal.run.root, quiet=True)
    fix_inputs(run, study, plan.cells)
    sent = []
    for number, (array, executor) in enumerate(zip(proposal.arrays, executors, strict=True)):
        if number:
            time.sleep(profile.limits.submit_interval_s)
        submission = Submission(
            folder=array.folder,
            name=array.name,
            resource=array.resources.name,
            tasks=tuple(tuple(cell.cell_id for cell in task) for task in array.tasks),
            made_at=datetime.datetime.now(datetime.UTC).isoformat(),
        )
        script = executor.prepare([DelayedSubmission(CellJob(str(run.root), task)) for task in submission.tasks])
        submission.write()
        try:
            job_id = executor.send(script)
        except SubmissionUnclear as error:
            report(f"{error}; it may have been accepted under the name {array.name}: submit again looks it up")
            break
        submission = dataclasses.replace(submission, job_id=job_id)
        submission.write()
        report(f"job {job_id}: {len(array.tasks)} tasks of class {array.resources.name}")
        sent.append(submission)
    return sent


def cells_of(arrays: Iterable[Array]) -> int:
    """Cells in all arrays."""
    return sum(len(task) for array in arrays for task in array.tasks)


def class_totals(arrays: Sequence[Array]) -> list[tuple[object, ...]]:
    """One row per resource class: arrays, jobs, cells, most core-hours and GPU-hours."""
    rows: list[tuple[object, ...]] = []
    for name in dict.fromkeys(array.resources.name for array in arrays):
        own = [array for array in arrays if array.resources.name == name]
        jobs = sum(len(array.tasks) for array in own)
        hours = (sum(a.core_hours for a in own), sum(a.gpu_hours for a in own))
        rows.append((name, len(own), jobs, cells_of(own), *(f"{value:.1f}" for value in hours)))
    return rows

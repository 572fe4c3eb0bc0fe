"""What a submission would do: which cells go in which arrays of jobs, and what they may cost; nothing is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.folder import default_folder
from jobs.pack import CELLS_A_JOB
from jobs.plan import Plan
from jobs.price import Prices, load_prices
from jobs.spec import Study
from jobs.states import cell_states
from slurm.limits import ClusterLimits, array_tasks, free_slots, read_limits, split
from slurm.profile import Profile
from slurm.queue import Queue, tasks_in_queue
from slurm.resources import Resources
from slurm.track import Tracker, track
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import ShardState
from sparsehpc.core.spec import Cell

_NO_ANSWER, _LATER = (
    "squeue does not answer: without it cells could be sent twice",
    "try again when the scheduler answers",
)

#: The estimate may be wrong by so much before the wall time ends a job.
HEADROOM = 2.0


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
    node_cpus
        Cores of a node, 0 where the profile does not say.
    """

    resources: Resources
    tasks: tuple[tuple[Cell, ...], ...]
    minutes: float
    exclude: str = ""
    node_cpus: int = 0

    @property
    def cells(self) -> int:
        """Cells of all tasks."""
        return sum(map(len, self.tasks))

    def hours(self, unit: str = "cpus", *, asked: bool = False) -> float:
        """Hours of cores (``cpus``) or GPUs (``gpus``): estimated, or the most that the wall times allow.

        A job that has a node to itself pays for all its cores.
        """
        minutes = len(self.tasks) * self.resources.minutes if asked else self.minutes
        units = getattr(self.resources, unit)
        if self.resources.exclusive and unit == "cpus":
            units = max(units, self.node_cpus)
        return float(units) * minutes / 60


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
            require_answer(tracker)
        queued, failed = sent_cells(tracker)
        problems = tracker.problems if ask_cluster else ()
    waiting = [cell for cell in unfinished if cell.cell_id not in queued and cell.cell_id not in failed]
    limits, slots = room(profile) if ask_cluster else (ClusterLimits(), None)
    prices = load_prices(study, run)
    arrays, later = make_arrays(waiting, study.resources, profile, limits, slots, prices, pack=pack)
    problems += price_warnings(arrays, profile)
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
    limits = read_limits(profile)
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
    for name, timed in dict.fromkeys((cell.resource, cell.latency is not None) for cell in cells):
        resources = asked_for(classes[name], profile)
        own = [cell for cell in cells if cell.resource == name and (cell.latency is not None) == timed]
        if timed:
            resources = for_timing(resources, own, prices, profile)
        target_s = 60 * min(profile.limits.minutes_per_job, resources.minutes / HEADROOM)
        jobs = prices.packs(own, float("inf") if pack else target_s, pack or CELLS_A_JOB)
        now = jobs if slots is None else jobs[:slots]
        slots = None if slots is None else slots - len(now)
        later += sum(map(len, jobs[len(now) :]))
        arrays += [
            Array(
                resources,
                tuple(part),
                sum(map(prices.seconds, part)) / 60,
                exclude,
                profile.job_for(resources).node_cpus,
            )
            for part in split(now, array_tasks(profile.limits, limits))
        ]
    return arrays, later


def asked_for(resources: Resources, profile: Profile) -> Resources:
    """What a job of a class asks for on this cluster: at least the profile's least wall time, within its limits."""
    limits = profile.limits
    minutes = max(resources.minutes, limits.min_minutes)
    return dataclasses.replace(resources, minutes=min(minutes, limits.max_minutes) if limits.max_minutes else minutes)


def for_timing(resources: Resources, cells: Sequence[Cell], prices: Prices, profile: Profile) -> Resources:
    """What jobs that time decoding ask for: a node to themselves, and time for all cells of a model in one job."""
    longest = max(map(prices.seconds, prices.packs(cells, float("inf"), CELLS_A_JOB)), default=0.0)
    minutes = max(resources.minutes, math.ceil(HEADROOM * longest / 60))
    return asked_for(dataclasses.replace(resources, minutes=minutes, exclusive=True), profile)


def price_warnings(arrays: Sequence[Array], profile: Profile) -> tuple[str, ...]:
    """What a reader of the price has to know: whole nodes are paid for, and nobody said what a node has."""
    unknown = dict.fromkeys(a.resources.name for a in arrays if a.resources.exclusive and not a.node_cpus)
    return tuple(
        f"jobs of class {name} have a node to themselves, and profile {profile.name} does not say how many cores a "
        f"node has: only those that are asked for are priced (node_cpus of [job] or [class.{name}])"
        for name in unknown
    )


def class_totals(arrays: Sequence[Array]) -> list[tuple[object, ...]]:
    """One row per resource class: arrays, jobs, cells, memory, estimated and asked core-hours, GPU-hours."""
    rows: list[tuple[object, ...]] = []
    for name, exclusive in dict.fromkeys((array.resources.name, array.resources.exclusive) for array in arrays):
        own = [array for array in arrays if (array.resources.name, array.resources.exclusive) == (name, exclusive)]
        first = own[0].resources
        hours = (
            sum(a.hours() for a in own),
            sum(a.hours(asked=True) for a in own),
            sum(a.hours("gpus") for a in own),
            sum(a.hours("gpus", asked=True) for a in own),
        )
        jobs, cells = sum(len(array.tasks) for array in own), sum(array.cells for array in own)
        asks = (f"{first.memory_gib:g}", first.minutes)
        title = f"{name}, whole node" if exclusive else name
        rows.append((title, len(own), jobs, cells, *asks, *(f"{value:.2f}" for value in hours)))
    return rows


TOTALS = (
    "class", "arrays", "jobs", "cells", "GiB a job", "minutes a job",
    "core-hours", "core-hours at most", "GPU-hours", "GPU-hours at most",
)  # fmt: skip


def require_answer(tracker: Tracker) -> None:
    """`UserError` where the scheduler has not said what waits and runs."""
    if not tracker.snapshot.queue_answered:
        raise UserError(_NO_ANSWER, _LATER)


def sent_cells(tracker: Tracker) -> tuple[set[str], set[str]]:
    """Cells on their way, and cells whose task has ended."""
    places = tracker.places()
    ended = {cell_id for cell_id, place in places.items() if place.stand == "ended"}
    return places.keys() - ended, ended

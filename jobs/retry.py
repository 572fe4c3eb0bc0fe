"""``sparsehpc retry``: what failed goes again with the remedy for its cause, up to a cap."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from jobs.fates import Fate, find_fates
from jobs.plan_file import planned_ids, read_plan
from jobs.price import Prices
from jobs.propose import Array, make_arrays
from slurm.limits import ClusterLimits
from slurm.profile import Profile
from slurm.resources import Resources
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell

MEMORY_FACTOR, TIME_FACTOR = 2.0, 1.5
#: Times the class's own request, where the profile names no limit.
MOST_MEMORY, MOST_TIME = 8.0, 8.0
#: Nodes that one retry may leave out; beyond that the cluster, not a node, is ill.
_MOST_EXCLUDED = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Remedy:
    """Cells that go again together.

    Parameters
    ----------
    resources
        What each job asks for this time.
    exclude
        Nodes to leave out.
    cells
        The cells.
    """

    resources: Resources
    exclude: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """What a retry would do.

    Parameters
    ----------
    remedies
        Groups of cells.
    causes
        How many cells of each cause go again; ``DAMAGED`` for shards that cannot be trusted.
    left
        Cells that do not go, with the reason.
    """

    remedies: tuple[Remedy, ...]
    causes: Counter[str]
    left: tuple[tuple[str, str], ...]

    @property
    def cell_ids(self) -> set[str]:
        """All cells that go again."""
        return {cell.cell_id for remedy in self.remedies for cell in remedy.cells}


def plan_retry(
    run: RunFolder, resources: Mapping[str, Resources], profile: Profile, *, force: bool = False, verify: bool = True
) -> Retry:
    """Decide what goes again; nothing is sent.

    Parameters
    ----------
    run
        The run folder.
    resources
        Classes of the study.
    profile
        The cluster, with its caps.
    force
        Also send what failed for its code or input: worth it only after something was repaired.
    verify
        Read every shard: a flipped bit counts as damage.
    """
    fates, _ = find_fates(run, planned_ids(run.plan), fresh=True, verify=verify)
    wanted = {cell_id: fate for cell_id, fate in fates.items() if fate.state in ("failed", "damaged")}
    cells = {cell.cell_id: cell for cell in read_plan(run.plan, list(wanted))}
    groups: dict[tuple[Resources, str], list[Cell]] = {}
    causes: Counter[str] = Counter()
    left: list[tuple[str, str]] = []
    for cell_id, fate in wanted.items():
        cause = "DAMAGED" if fate.state == "damaged" else fate.cause
        first = resources[cells[cell_id].resource]
        if cause == "CODE" and not force:
            left.append((cell_id, "its code or input failed, and would again; --force once that is repaired"))
            continue
        asked, why_not = remedy(cause, fate.place.resources if fate.place is not None else first, first, profile)
        if why_not:
            left.append((cell_id, why_not))
            continue
        groups.setdefault((asked, _ill_node(cause, fate)), []).append(cells[cell_id])
        causes[cause] += 1
    ill = sorted({node for _, node in groups if node})[:_MOST_EXCLUDED]
    exclude = ",".join(ill)
    merged: dict[tuple[Resources, str], list[Cell]] = {}
    for (asked, node), members in groups.items():
        merged.setdefault((asked, exclude if node else ""), []).extend(members)
    remedies = tuple(Remedy(asked, nodes, tuple(members)) for (asked, nodes), members in merged.items())
    return Retry(remedies, causes, tuple(left))


def remedy(cause: str, last: Resources, first: Resources, profile: Profile) -> tuple[Resources, str]:
    """What to ask for after a failure, and why it is given up where a cap is reached.

    Parameters
    ----------
    cause
        Of the last attempt.
    last
        What it had asked for.
    first
        What the study's class asks for now.
    profile
        The cluster's limits.
    """
    limits = profile.limits
    if cause == "OOM":
        cap = limits.max_memory_gib or first.memory_gib * MOST_MEMORY
        if last.memory_gib >= cap:
            return last, f"out of memory with {last.memory_gib:g} GiB, and more than {cap:g} GiB is not asked for"
        return dataclasses.replace(last, memory_gib=min(last.memory_gib * MEMORY_FACTOR, cap)), ""
    if cause == "TIME":
        cap_minutes = limits.max_minutes or round(max(first.minutes, limits.min_minutes) * MOST_TIME)
        if last.minutes >= cap_minutes:
            return last, f"out of time after {last.minutes} minutes, and more than {cap_minutes} is not asked for"
        return dataclasses.replace(last, minutes=min(round(last.minutes * TIME_FACTOR), cap_minutes)), ""
    # A study whose request was raised by hand in the meantime counts.
    memory, minutes = max(last.memory_gib, first.memory_gib), max(last.minutes, first.minutes)
    return dataclasses.replace(first, memory_gib=memory, minutes=minutes), ""


def retry_arrays(
    plan: Retry, prices: Prices, profile: Profile, limits: ClusterLimits, slots: int | None
) -> tuple[list[Array], int]:
    """Arrays to send, and how many cells have to wait until there is room in the queue."""
    arrays: list[Array] = []
    later = 0
    for group in plan.remedies:
        resources = {group.resources.name: group.resources}
        more, waiting = make_arrays(group.cells, resources, profile, limits, slots, prices, exclude=group.exclude)
        slots = None if slots is None else slots - sum(len(array.tasks) for array in more)
        arrays += more
        later += waiting
    return arrays, later


def _ill_node(cause: str, fate: Fate) -> str:
    """Node to leave out, where the scheduler says that it failed: a full shared disk is no node's fault."""
    state = fate.place.state if fate.place is not None else None
    failed = state is not None and state.state in ("NODE_FAIL", "BOOT_FAIL")
    nodes = state.nodes if state is not None and failed and cause == "NODE" else ""
    return nodes if nodes and "[" not in nodes and "," not in nodes else ""

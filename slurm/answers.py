"""What squeue and sacct print, read into one state per array task."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

#: States in which a task may still do something.
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
RUNNING = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

Key = tuple[str, int]
#: Index of what is said of all tasks of an array that are not named: those cancelled before they started.
REST = -1


@dataclasses.dataclass(frozen=True, slots=True)
class TaskState:
    """What the scheduler says of one array task.

    Parameters
    ----------
    job_id
        Id of the array.
    task
        Index in it.
    state
        Slurm's word: ``PENDING``, ``RUNNING``, ``OUT_OF_MEMORY``, ...
    reason
        Why it waits, where it does.
    exit_code, signal
        Of the batch script or its step; 0 where there is none.
    nodes
        Where it ran.
    elapsed_s
        Run time of the last attempt.
    peak_bytes
        Largest MaxRSS of its steps; 0: not known.
    """

    job_id: str
    task: int
    state: str
    reason: str = ""
    exit_code: int = 0
    signal: int = 0
    nodes: str = ""
    elapsed_s: int = 0
    peak_bytes: int = 0

    @property
    def waiting(self) -> bool:
        """Whether it has still to start."""
        return self.state in WAITING

    @property
    def running(self) -> bool:
        """Whether it is at work."""
        return self.state in RUNNING

    @property
    def active(self) -> bool:
        """Whether it may still produce something."""
        return self.waiting or self.running


def joined(queued: Mapping[Key, TaskState] | None, accounted: Mapping[Key, TaskState]) -> dict[Key, TaskState]:
    """Two sources as one: squeue knows what is alive, accounting how things ended.

    A task that accounting calls alive and squeue no longer has ended in the moment between, or its record was never
    closed (the database was down): it is left out, and files decide.
    """
    if queued is None:
        return dict(accounted)
    found = {key: state for key, state in accounted.items() if key in queued or not state.active}
    for key, state in queued.items():
        if state.active or key not in found or found[key].active:
            found[key] = state
    return found


def parse_squeue(text: str) -> dict[Key, TaskState]:
    """Tasks of squeue's output."""
    tasks = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 6:
            continue
        job_id, index, name, state, reason, nodes = fields
        for task in _indices(index):
            tasks[name, task] = TaskState(job_id, task, state, "" if reason == "None" else reason, nodes=nodes)
    return tasks


def parse_sacct(text: str) -> dict[Key, TaskState]:
    """Tasks of sacct's output; figures of steps are joined to their task."""
    tasks: dict[Key, TaskState] = {}
    names: dict[tuple[str, int], str] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 7:
            continue
        job, name, state, code, peak, elapsed, nodes = fields
        job, _, step = job.partition(".")
        job_id, _, index = job.partition("_")
        exit_code, _, signal = code.partition(":")
        for task in _indices(index):
            if not step:
                names[job_id, task] = name
                tasks[name, task] = TaskState(
                    job_id,
                    task,
                    state.split()[0] if state else "",
                    exit_code=_int(exit_code),
                    signal=_int(signal),
                    nodes="" if nodes.startswith("None") else nodes,
                    elapsed_s=_int(elapsed),
                )
            elif (job_id, task) in names:
                key = (names[job_id, task], task)
                whole = tasks[key]
                # The step's own end says more than the batch script's, which only passes an exit code on.
                memory = state.startswith("OUT_OF_ME") and not whole.active
                tasks[key] = dataclasses.replace(
                    whole,
                    state="OUT_OF_MEMORY" if memory else whole.state,
                    signal=whole.signal or _int(signal),
                    peak_bytes=max(whole.peak_bytes, _bytes(peak)),
                )
    return tasks


def _indices(text: str) -> list[int]:
    """``7``, ``[3-5,9%2]`` or nothing: a plain job, or all tasks that are not named.

    >>> _indices("7"), _indices("[3-5,9%2]"), _indices("N/A")
    ([7], [3, 4, 5, 9], [-1])
    """
    found: list[int] = []
    for part in re.sub(r"%\d+", "", text.strip("[]")).split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            found.extend(range(int(low), int(high or low) + 1))
    return found or [REST]


def _int(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _bytes(text: str) -> int:
    """``1834K`` in bytes; 0 where it is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    return int(float(found.group(1)) * _UNITS[found.group(2)]) if found else 0

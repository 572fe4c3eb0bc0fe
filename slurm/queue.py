"""What the scheduler knows about a run's jobs: one call of squeue and one of sacct for all of them, rarely.

Answers are cached in the run folder, so that several people and processes asking often still are one question a
minute. A scheduler or an accounting database that is down is said, never fatal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import getpass
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slurm.limits import ask
from sparsehpc.core.files import write_text

#: States in which a task may still do something.
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
RUNNING = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)
CACHE = "queue.json"
_SQUEUE = "%F|%K|%j|%T|%r|%N"
_SACCT = "JobID,JobName%100,State,ExitCode,MaxRSS,ElapsedRaw,NodeList"
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


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """Answer about some jobs.

    Parameters
    ----------
    tasks
        By job name and array index.
    asked_at
        Seconds since the epoch.
    queue_answered, accounting_answered
        Whether squeue and sacct did; without either, absence says nothing.
    """

    tasks: dict[Key, TaskState]
    asked_at: float
    queue_answered: bool
    accounting_answered: bool

    @property
    def problems(self) -> list[str]:
        """What a reader has to know about the answer."""
        found = []
        if not self.queue_answered:
            found.append("squeue did not answer: what waits or runs is not known")
        if not self.accounting_answered:
            found.append("sacct did not answer: causes come from files and from squeue only")
        return found

    def task(self, job_name: str, task: int) -> TaskState | None:
        """State of one task; None where the scheduler does not know it."""
        return self.tasks.get((job_name, task)) or self.tasks.get((job_name, REST))

    def ids(self, job_name: str) -> set[str]:
        """Ids of the arrays that carry a name."""
        return {state.job_id for (name, _), state in self.tasks.items() if name == job_name}


class Queue:
    """Polite questions about the jobs of one run.

    Parameters
    ----------
    folder
        Where the cache lies (the run's ``submissions``).
    interval_s
        Least seconds between two questions.
    accounting
        Whether to ask sacct at all.
    run
        Runs a command and returns its output, None where it failed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        interval_s: float = 60.0,
        accounting: bool = True,
        run: Callable[[Sequence[str]], str | None] = ask,
    ) -> None:
        self.path = folder / CACHE
        self.interval_s, self.accounting, self._run = interval_s, accounting, run
        self.calls = 0

    def look(self, names: Iterable[str], since: datetime.datetime, *, fresh: bool = False) -> Snapshot:
        """State of every task of the named jobs.

        Parameters
        ----------
        names
            Job names.
        since
            Before the first of them was submitted.
        fresh
            Ask even where the cache is young; for decisions about submitting.
        """
        wanted = sorted(set(names))
        if not wanted:
            return Snapshot({}, time.time(), queue_answered=True, accounting_answered=True)
        cached = self._cached()
        if cached is not None and not fresh and set(wanted) <= set(cached["names"]):
            age = time.time() - cached["asked_at"]
            if 0 <= age < self.interval_s:
                return _snapshot(cached)
        known = {} if cached is None else _snapshot(cached).tasks
        # What had ended stays known while nobody answers; a requeued task is shown by squeue.
        tasks = {key: state for key, state in known.items() if key[0] in wanted and not state.active}
        accounted = self._sacct(wanted, since) if self.accounting else None
        tasks.update(accounted or {})
        queued = self._squeue(wanted)
        tasks = joined(queued, tasks)
        answer = {
            "names": wanted,
            "asked_at": time.time(),
            "queue_answered": queued is not None,
            "accounting_answered": accounted is not None or not self.accounting,
            "tasks": [[name, dataclasses.astuple(state)] for (name, _), state in tasks.items()],
        }
        with contextlib.suppress(OSError):  # a run folder of someone else, or read-only: then every look asks
            write_text(self.path, json.dumps(answer))
        return _snapshot(answer)

    def forget(self) -> None:
        """Ask anew next time: something was just submitted or cancelled."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _cached(self) -> dict[str, Any] | None:
        try:
            cached: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            _snapshot(cached)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cached

    def _squeue(self, names: Sequence[str]) -> dict[Key, TaskState] | None:
        self.calls += 1
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}"]
        text = self._run([*command, f"--name={','.join(names)}", f"--format={_SQUEUE}"])
        return None if text is None else parse_squeue(text)

    def _sacct(self, names: Sequence[str], since: datetime.datetime) -> dict[Key, TaskState] | None:
        self.calls += 1
        # A day of slack: clocks of the login node and of the database need not agree.
        start = (since - datetime.timedelta(days=1)).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
        command = ["sacct", "--noheader", "--parsable2", f"--name={','.join(names)}", f"--starttime={start}"]
        text = self._run([*command, f"--user={getpass.getuser()}", f"--format={_SACCT}"])
        return None if text is None else parse_sacct(text)


def tasks_in_queue(run: Callable[[Sequence[str]], str | None] = ask) -> int | None:
    """How many tasks of this user wait or run, of whatever job; None where the scheduler does not answer."""
    text = run(["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%T"])
    return None if text is None else len(text.split())


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


def _snapshot(answer: dict[str, Any]) -> Snapshot:
    tasks = {(str(name), int(values[1])): TaskState(*values) for name, values in answer["tasks"]}
    asked_at, queue, accounting = (answer[key] for key in ("asked_at", "queue_answered", "accounting_answered"))
    return Snapshot(tasks, float(asked_at), queue_answered=bool(queue), accounting_answered=bool(accounting))

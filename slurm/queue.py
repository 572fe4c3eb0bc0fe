"""What the scheduler knows about a run's jobs: one call of squeue and one of sacct for all of them, rarely.

Answers are cached in the run folder, so that several people and processes asking often still are one question a
minute. A scheduler or an accounting database that is down is said, never fatal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from slurm.answers import REST, Key, TaskState, joined, parse_sacct, parse_squeue
from slurm.limits import ask
from sparsehpc.core.files import write_text

CACHE = "queue.json"
_SQUEUE = "%F|%K|%j|%T|%r|%N"
_SACCT = "JobID,JobName%100,State,ExitCode,MaxRSS,ElapsedRaw,NodeList"


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

    def look(
        self, names: Iterable[str], since: datetime.datetime, *, users: Iterable[int] = (), fresh: bool = False
    ) -> Snapshot:
        """State of every task of the named jobs.

        Parameters
        ----------
        names
            Job names.
        since
            Before the first of them was submitted.
        users
            Numbers of the users who submitted them, besides this one.
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
        # By number: a name that is gone would be an error.
        who = ",".join(map(str, sorted({os.getuid(), *users})))
        accounted = self._sacct(wanted, since, who) if self.accounting else None
        tasks.update(accounted or {})
        queued = self._squeue(wanted, who)
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

    def _squeue(self, names: Sequence[str], who: str) -> dict[Key, TaskState] | None:
        self.calls += 1
        command = ["squeue", "--noheader", "--array", "--states=all", f"--user={who}"]
        text = self._run([*command, f"--name={','.join(names)}", f"--format={_SQUEUE}"])
        return None if text is None else parse_squeue(text)

    def _sacct(self, names: Sequence[str], since: datetime.datetime, who: str) -> dict[Key, TaskState] | None:
        self.calls += 1
        # A day of slack: clocks of the login node and of the database need not agree.
        start = (since - datetime.timedelta(days=1)).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
        command = ["sacct", "--noheader", "--parsable2", f"--name={','.join(names)}", f"--starttime={start}"]
        text = self._run([*command, f"--user={who}", f"--format={_SACCT}"])
        return None if text is None else parse_sacct(text)


def tasks_in_queue(run: Callable[[Sequence[str]], str | None] = ask) -> int | None:
    """How many tasks of this user wait or run, of whatever job; None where the scheduler does not answer."""
    text = run(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%T"])
    return None if text is None else len(text.split())


def _snapshot(answer: dict[str, Any]) -> Snapshot:
    tasks = {(str(name), int(values[1])): TaskState(*values) for name, values in answer["tasks"]}
    asked_at, queue, accounting = (answer[key] for key in ("asked_at", "queue_answered", "accounting_answered"))
    return Snapshot(tasks, float(asked_at), queue_answered=bool(queue), accounting_answered=bool(accounting))

"""Asked against used: what finished jobs of each class took of their memory and time, and what to ask next time."""

from __future__ import annotations

import dataclasses
import math
import statistics

from slurm.track import Tracker

#: Room above the largest use seen, for what was not seen.
_ROOM = 1.25
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Use of one resource class by tasks that completed.

    Parameters
    ----------
    resource
        Class.
    tasks
        Tasks that completed.
    memory_asked_gib, memory_used_gib
        Asked, and the largest MaxRSS; 0 where accounting does not know. No ratio is given: the peak decides whether a
        job lives, its share of the request says nothing about quality.
    minutes_asked, minutes_longest, minutes_median
        Wall time asked and used.
    suggestion
        What to ask for next time.
    """

    resource: str
    tasks: int
    memory_asked_gib: float
    memory_used_gib: float
    minutes_asked: int
    minutes_longest: float
    minutes_median: float
    suggestion: str


def usage(tracker: Tracker) -> list[Usage]:
    """Use of every class."""
    asked: dict[str, tuple[float, int]] = {}
    used: dict[str, list[tuple[int, int]]] = {}
    by_name = {item.job_name: item for item in tracker.submissions if item.purpose == "cells"}
    for (name, _), state in tracker.snapshot.tasks.items():
        submission = by_name.get(name)
        if submission is None or state.state != "COMPLETED":
            continue
        resource = str(submission.resources["name"])
        memory, minutes = float(submission.resources["memory_gib"]), int(submission.resources["minutes"])
        before = asked.get(resource, (0.0, 0))
        asked[resource] = (max(before[0], memory), max(before[1], minutes))
        used.setdefault(resource, []).append((state.peak_bytes, state.elapsed_s))
    return [_one(resource, *asked[resource], tasks) for resource, tasks in used.items()]


def _one(resource: str, memory_gib: float, minutes: int, tasks: list[tuple[int, int]]) -> Usage:
    peak = max(peak for peak, _ in tasks) / _GIB
    longest, median = (pick(elapsed for _, elapsed in tasks) / 60 for pick in (max, statistics.median))
    words = []
    if peak:
        words.append(f"memory_gib = {max(0.5, math.ceil(peak * _ROOM * 2) / 2):g}")
    words.append(f"minutes = {max(15, math.ceil(longest * _ROOM / 5) * 5)}")
    used = (round(peak, 2), minutes, round(longest, 1), round(median, 1))
    return Usage(resource, len(tasks), memory_gib, *used, suggestion=", ".join(words))

"""What the cluster allows right now, and how to split work to it."""

from __future__ import annotations

import dataclasses
import getpass
import itertools
import re
import subprocess
from collections.abc import Sequence
from typing import TypeVar

from slurm.profile import Limits

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterLimits:
    """Limits read from the scheduler; None where it did not say.

    Parameters
    ----------
    max_array_size
        Slurm's MaxArraySize: the largest index of an array is one less.
    max_submit
        Jobs this user may have in the queue at once (the least of what associations say).
    """

    max_array_size: int | None = None
    max_submit: int | None = None


def ask(command: Sequence[str], timeout_s: float = 20.0) -> str | None:
    """Output of a scheduler command; None where it is missing, fails or does not answer."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def read_limits(*, accounting: bool = True) -> ClusterLimits:
    """Ask ``scontrol`` and, where there is accounting, ``sacctmgr``."""
    config = ask(["scontrol", "show", "config"]) or ""
    max_submit = None
    if accounting:
        rows = ask(
            [
                "sacctmgr",
                "-nP",
                "show",
                "associations",
                "where",
                "user=" + getpass.getuser(),
                "format=MaxSubmitJobs,GrpSubmitJobs",
            ]
        )
        numbers = [int(word) for word in re.findall(r"\d+", rows or "")]
        max_submit = min(numbers, default=None)
    return ClusterLimits(_number(config, "MaxArraySize"), max_submit)


def array_tasks(limits: Limits, cluster: ClusterLimits) -> int:
    """Tasks one array may have."""
    most = limits.max_array_tasks
    if cluster.max_array_size is not None:
        # Indices run from 0 to MaxArraySize - 1.
        most = min(most, cluster.max_array_size)
    if cluster.max_submit is not None:
        most = min(most, cluster.max_submit)
    return max(1, most)


def free_slots(limits: Limits, cluster: ClusterLimits, queued: int) -> int | None:
    """Tasks that may be submitted now, ``queued`` being there already; None: no limit is known.

    One slot below the user's MaxSubmit stays free for the aggregation job.
    """
    bounds = []
    if limits.max_queued:
        bounds.append(limits.max_queued)
    if cluster.max_submit is not None:
        bounds.append(cluster.max_submit - 1)
    if not bounds:
        return None
    return max(0, min(bounds) - queued)


def split(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Cut a list into as few pieces of at most ``most`` as there can be, in order, of nearly equal length."""
    if not items:
        return []
    pieces = -(-len(items) // most)
    short, longer = divmod(len(items), pieces)
    cuts = [0]
    for piece in range(pieces):
        cuts.append(cuts[-1] + short + (piece < longer))
    return [items[start:stop] for start, stop in itertools.pairwise(cuts)]


def _number(config: str, key: str) -> int | None:
    found = re.search(rf"^{key}\s*=\s*(\d+)", config, re.MULTILINE)
    return int(found.group(1)) if found else None

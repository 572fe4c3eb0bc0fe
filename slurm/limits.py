"""What the cluster allows right now, and how to split work to it."""

from __future__ import annotations

import dataclasses
import getpass
import itertools
import re
import subprocess
from collections.abc import Callable, Sequence, Set
from typing import TypeVar

from slurm.profile import Limits, Profile

T = TypeVar("T")
Run = Callable[[Sequence[str]], str | None]

#: Columns of sacctmgr that bound how many jobs may be in the queue.
_OF_USER = ("MaxSubmitJobs", "GrpSubmitJobs")
_OF_QOS = ("MaxSubmitJobsPerUser", "MaxSubmitJobsPerAccount", "GrpSubmitJobs")
#: Slurm's own, where an association names no default.
_USUAL_QOS = "normal"


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterLimits:
    """Limits read from the scheduler; None where it did not say.

    Parameters
    ----------
    max_array_size
        Slurm's MaxArraySize: the largest index of an array is one less.
    max_submit
        Jobs this user may have in the queue at once (the least of what associations and QOS say).
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


def read_limits(profile: Profile, run: Run = ask) -> ClusterLimits:
    """Ask ``scontrol`` and, where there is accounting, ``sacctmgr``; of accounts and QOS only what the profile uses."""
    config = run(["scontrol", "show", "config"]) or ""
    max_submit = None
    if profile.limits.accounting:
        max_submit = submit_limit(run, *(_used(profile, key) for key in ("account", "partition", "qos")))
    return ClusterLimits(_number(config, "MaxArraySize"), max_submit)


def submit_limit(run: Run, accounts: Set[str], partitions: Set[str], qos: Set[str]) -> int | None:
    """Jobs this user may have in the queue: the least of what associations, QOS and the partitions' QOS say.

    Parameters
    ----------
    run
        Runs a command; see `ask`.
    accounts, partitions, qos
        What jobs name; ``""`` stands for the default one.
    """
    user = getpass.getuser()
    rows = _table(run, f"user {user} withassoc", "DefaultAccount", "Account", "Partition", "DefaultQOS", *_OF_USER)
    limits, named = list[str](), {name for name in qos if name}
    for default, account, partition, usual, *most in rows:
        if account in accounts or ("" in accounts and account == default):
            if partition and partition not in partitions:
                continue  # an association for one partition, and of no other
            limits += most
            if "" in qos:
                named.add(usual or _USUAL_QOS)
    for name, values in partition_values(run(["scontrol", "--oneliner", "show", "partition"]) or "").items():
        if (name in partitions or ("" in partitions and values.get("Default") == "YES")) and "QoS" in values:
            named.add(values["QoS"])
    limits += [limit for name, *most in _table(run, "qos", "Name", *_OF_QOS) if name in named for limit in most]
    return min((int(limit) for limit in limits if limit.isdigit()), default=None)


def partition_values(text: str) -> dict[str, dict[str, str]]:
    """Keys and values of ``scontrol --oneliner show partition``, by the partition's name.

    >>> partition_values("PartitionName=cpu Default=YES QoS=N/A")["cpu"]["Default"]
    'YES'
    """
    found = {}
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" in values:
            found[values["PartitionName"]] = values
    return found


def _table(run: Run, what: str, *columns: str) -> list[list[str]]:
    text = run(["sacctmgr", "-nP", "show", *what.split(), f"format={','.join(columns)}"]) or ""
    rows = [line.split("|") for line in text.splitlines()]
    return [row for row in rows if len(row) == len(columns)]


def _used(profile: Profile, key: str) -> set[str]:
    """What a profile's jobs name for one key, in ``[job]`` and in the classes that name their own."""
    own = (getattr(job, key) for job in profile.classes.values() if key in job.model_fields_set)
    return {part for names in (getattr(profile.job, key), *own) for part in names.split(",")}


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

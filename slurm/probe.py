"""Ask the cluster this machine belongs to, and write a commented profile for it."""

from __future__ import annotations

import dataclasses
import getpass
import os
import re
from collections.abc import Mapping, Sequence

from slurm.limits import Run, ask, partition_values, submit_limit
from slurm.node import SCRATCH_VARIABLES
from sparsehpc.core.errors import UserError

#: One array never has more tasks, whatever the cluster allows: its files lie in one folder.
_MOST_ARRAY = 500
_SITE_SCRATCH = (*SCRATCH_VARIABLES, "SCRATCH", "WORK", "PROJECT", "TMP_SHARED")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """One partition.

    Parameters
    ----------
    name, default, up
        As sinfo says.
    max_minutes
        Longest job; None: no limit.
    nodes, cpus, memory_gib
        How many nodes, and what the smallest of them has.
    gpu_types
        Types of GPUs, ``""`` where they have none to their name; empty without GPUs.
    gpus
        GPUs a node.
    features
        What ``constraint`` can choose.
    accounts, qos
        Who may use it; empty: everybody.
    max_nodes
        Most nodes a job; None: no limit.
    threads_per_core
        CPUs of a core where Slurm counts hardware threads as CPUs; 1 where it counts cores.
    """

    name: str
    default: bool
    up: bool
    max_minutes: int | None
    nodes: int
    cpus: int
    memory_gib: float
    gpu_types: tuple[str, ...] = ()
    gpus: int = 0
    features: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    max_nodes: int | None = None
    threads_per_core: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What a cluster says about itself.

    Parameters
    ----------
    name, version
        Of the cluster and of Slurm.
    partitions
        All of them.
    max_array_size, accounting
        See scontrol's MaxArraySize and AccountingStorageType.
    accounts, qos
        What this user may charge (the default account first) and ask for; empty where accounting does not say.
    max_submit
        Jobs this user may have in the queue.
    scratch
        Variables of the environment that name scratch space.
    """

    name: str
    version: str
    partitions: tuple[Partition, ...]
    max_array_size: int | None
    accounting: bool
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    max_submit: int | None = None
    scratch: tuple[str, ...] = ()


def probe(run: Run = ask, environment: Mapping[str, str] | None = None) -> Cluster:
    """Ask ``scontrol``, ``sinfo`` and, where there is accounting, ``sacctmgr``; a handful of commands in all.

    Raises
    ------
    UserError
        No Slurm answers.
    """
    config = run(["scontrol", "show", "config"])
    nodes = run(["sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G|%f|%z"])
    if config is None or nodes is None:
        raise UserError(
            "no Slurm answers on this machine",
            "run it on the cluster's login node; sparsehpc testbed up starts a private one to try things on",
        )
    values = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", config, re.MULTILINE))
    accounting = "none" not in values.get("AccountingStorageType", "none").lower().replace("(null)", "none")
    accounts, qos = _association(run) if accounting else ((), ())
    allowed = partition_values(run(["scontrol", "--oneliner", "show", "partition"]) or "")
    outside = os.environ if environment is None else environment
    size = values.get("MaxArraySize", "")
    return Cluster(
        name=values.get("ClusterName", "cluster"),
        version=values.get("SLURM_VERSION", "unknown"),
        partitions=tuple(with_limits(part, allowed.get(part.name, {})) for part in parse_sinfo(nodes)),
        max_array_size=int(size) if size.isdigit() else None,
        accounting=accounting,
        accounts=accounts,
        qos=qos,
        max_submit=submit_limit(run, {""}, {""}, {""}) if accounting else None,
        scratch=tuple(name for name in dict.fromkeys(_SITE_SCRATCH) if outside.get(name)),
    )


def parse_sinfo(text: str) -> list[Partition]:
    """Partitions of ``sinfo --format=%P|%a|%l|%D|%c|%m|%G|%f|%z``: a line a kind of node, joined by name."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 9:
            continue
        name, up, limit, nodes, cpus, memory, gres, features, parts = (field.strip() for field in fields)
        kinds = re.findall(r"gpu(?::([\w.-]+?))?:(\d+)", gres)
        one = Partition(
            name=name.rstrip("*"),
            default=name.endswith("*"),
            up=up == "up",
            max_minutes=_minutes(limit),
            nodes=int(nodes),
            cpus=int(cpus.rstrip("+")),
            memory_gib=int(memory.rstrip("+")) / 1024,
            gpu_types=tuple(kind for kind, _ in kinds),
            gpus=max((int(count) for _, count in kinds), default=0),
            features=() if features == "(null)" else tuple(features.split(",")),
            threads_per_core=_threads_per_core(parts, int(cpus.rstrip("+"))),
        )
        found[one.name] = _joined(found[one.name], one) if one.name in found else one
    return list(found.values())


def with_limits(part: Partition, values: Mapping[str, str]) -> Partition:
    """Add what ``scontrol show partition`` says: who may use it, and the most memory and nodes of a job."""
    memory = [part.memory_gib]
    if (most := values.get("MaxMemPerNode", "")).isdigit():
        memory.append(int(most) / 1024)
    if (most := values.get("MaxMemPerCPU", "")).isdigit():
        memory.append(int(most) * part.cpus / 1024)
    nodes = values.get("MaxNodes", "")
    return dataclasses.replace(
        part,
        memory_gib=min(memory),
        accounts=_named(values.get("AllowAccounts", "ALL")),
        qos=_named(values.get("AllowQos", "ALL")),
        max_nodes=int(nodes) if nodes.isdigit() else None,
    )


def profile_text(cluster: Cluster, today: str) -> str:
    """Write a commented profile: what was found, and a choice of partitions to look at."""
    cpu, gpu = _choice(cluster, gpus=False), _choice(cluster, gpus=True)
    lines = [
        f"# Written by `sparsehpc profile probe` on {today}. Look at it, then: sparsehpc doctor --profile FILE",
        f'description = "cluster {_plain(cluster.name)}, Slurm {_plain(cluster.version)}"',
        "",
        "# Partitions (* default):",
        *(f"#   {line}" for line in _partition_lines(cluster.partitions)),
    ]
    if cluster.scratch:
        lines.append(f"# Scratch space is named by: {', '.join(f'${name}' for name in cluster.scratch)}")
    lines += ["", "[limits]"]
    if cluster.max_array_size is not None:
        lines.append(f"# the cluster's MaxArraySize is {cluster.max_array_size}; it is also read live")
    lines.append(f"max_array_tasks = {min(_MOST_ARRAY, cluster.max_array_size or _MOST_ARRAY)}")
    if cluster.max_submit is not None:
        lines.append(f"# you may have {cluster.max_submit} jobs in the queue; it is also read live")
    lines.append("max_queued = 0              # tasks waiting or running at once; 0: what the cluster allows")
    limits = [part.max_minutes for part in (cpu, gpu) if part is not None]
    if limits and all(limit is not None for limit in limits):
        lines.append(f"max_minutes = {min(limit for limit in limits if limit is not None)}")
    memory = [part.memory_gib for part in (cpu, gpu) if part is not None]
    if memory:
        lines.append(f"max_memory_gib = {int(min(memory))}.0   # of the smallest node, or what the partition allows")
    lines.append(f"accounting = {str(cluster.accounting).lower()}")
    lines += ["", "[job]", *_account_lines(cluster), 'setup = []                  # e.g. ["module load python/3.12"]']
    lines += ['# python = "python"         # default: the interpreter that submits', "", "[class.cpu]"]
    lines.append(f'partition = "{cpu.name}"' if cpu else "# no partition without GPUs was found")
    if cpu is not None:
        lines.append(f"node_cpus = {cpu.cpus}              # prices jobs that have a node to themselves")
        lines += _thread_lines(cpu)
    if gpu is not None:
        kinds = [kind for kind in gpu.gpu_types if kind]
        lines += ["", "[class.gpu]", f'partition = "{gpu.name}"', 'gpus_by = "gres"            # or "gpus-per-node"']
        if kinds:
            lines.append(f'# gpu_type = "{kinds[0]}"       # there are: {", ".join(kinds)}')
        if gpu.features:
            lines.append(f'# constraint = "{gpu.features[0]}"    # there are: {", ".join(gpu.features[:8])}')
        lines += _thread_lines(gpu)
    return "\n".join(lines) + "\n"


def _account_lines(cluster: Cluster) -> list[str]:
    lines = []
    if cluster.accounts:
        lines.append(f'account = "{cluster.accounts[0]}"' + _others(cluster.accounts))
    else:
        lines.append('# account = "my-project"')
    if cluster.qos:
        lines.append(f'# qos = "{cluster.qos[0]}"' + _others(cluster.qos))
    return lines


def _thread_lines(part: Partition) -> list[str]:
    if part.threads_per_core == 1:
        return []
    return [
        f"# A CPU is one of {part.threads_per_core} threads of a core: jobs get fewer cores than they ask for CPUs.",
        '# extra = { hint = "nomultithread" }   # asks for whole cores',
    ]


def _others(names: Sequence[str]) -> str:
    return f"    # or: {', '.join(names[1:9])}" if len(names) > 1 else ""


def _partition_lines(partitions: Sequence[Partition]) -> list[str]:
    lines = []
    for part in partitions:
        limit = "no time limit" if part.max_minutes is None else f"at most {part.max_minutes} minutes"
        cores = f"{part.cpus} cores"
        if part.threads_per_core > 1:
            cores = f"{part.cpus} CPUs, {part.threads_per_core} threads a core"
        words = [f"{part.nodes} nodes", cores, f"{part.memory_gib:.0f} GiB", limit]
        if part.gpus:
            words.insert(3, f"{part.gpus} GPUs {' '.join(kind for kind in part.gpu_types if kind)}".strip())
        words += [f"at most {part.max_nodes} nodes a job"] if part.max_nodes is not None else []
        words += [
            f"only {name} {' '.join(map(_plain, v))}"
            for name, v in (("account", part.accounts), ("qos", part.qos))
            if v
        ]
        words += [] if part.up else ["down"]
        lines.append(f"{part.name}{'*' * part.default}: {', '.join(words)}")
    return lines


def _choice(cluster: Cluster, *, gpus: bool) -> Partition | None:
    """Partition to start from: up, of this kind, open to this user, the default one or the one with most nodes."""
    mine = set(cluster.accounts)
    fitting = [
        part
        for part in cluster.partitions
        if part.up and bool(part.gpus) == gpus and (not mine or not part.accounts or mine & set(part.accounts))
    ]
    return max(fitting, key=lambda part: (part.default, part.nodes), default=None)


def _association(run: Run) -> tuple[tuple[str, ...], tuple[str, ...]]:
    words = ["sacctmgr", "-nP", "show", "associations", "where", f"user={getpass.getuser()}", "format=Account,QOS"]
    rows = [line.split("|") for line in (run(words) or "").splitlines()]
    rows = [row for row in rows if len(row) == 2]
    default = (run(["sacctmgr", "-nP", "show", "user", getpass.getuser(), "format=DefaultAccount"]) or "").strip()
    accounts = sorted({row[0] for row in rows if row[0]}, key=lambda name: (name != default, name))
    qos = dict.fromkeys(name for row in rows for name in row[1].split(",") if name)
    return tuple(accounts), tuple(qos)


def _threads_per_core(parts: str, cpus: int) -> int:
    """Threads of sinfo's sockets:cores:threads that count as CPUs: none where a node has as many CPUs as cores.

    >>> _threads_per_core("2:32:2", 128), _threads_per_core("2:32:2", 64), _threads_per_core("2:32:1", 64)
    (2, 1, 1)
    """
    found = re.fullmatch(r"(\d+)\+?:(\d+)\+?:(\d+)\+?", parts)
    if found is None:
        return 1
    sockets, cores, threads = map(int, found.groups())
    return threads if cpus > sockets * cores else 1


def _named(text: str) -> tuple[str, ...]:
    """Names of a list of scontrol; empty where it says that all are allowed."""
    return () if text.upper() in ("ALL", "", "(NULL)", "N/A") else tuple(text.split(","))


def _joined(one: Partition, other: Partition) -> Partition:
    return dataclasses.replace(
        one,
        default=one.default or other.default,
        nodes=one.nodes + other.nodes,
        cpus=min(one.cpus, other.cpus),
        memory_gib=min(one.memory_gib, other.memory_gib),
        gpu_types=tuple(dict.fromkeys((*one.gpu_types, *other.gpu_types))),
        gpus=max(one.gpus, other.gpus),
        features=tuple(dict.fromkeys((*one.features, *other.features))),
        threads_per_core=max(one.threads_per_core, other.threads_per_core),
    )


def _minutes(limit: str) -> int | None:
    """``D-HH:MM:SS``, ``HH:MM:SS``, ``MM:SS`` or ``infinite`` in minutes.

    >>> _minutes("2-00:00:00"), _minutes("1:30:00"), _minutes("30:00"), _minutes("infinite")
    (2880, 90, 30, None)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if found is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + minutes


def _plain(text: str) -> str:
    return re.sub(r"[^\w. +-]", "-", text)

"""Configuration files of the private cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path

NODE_CPUS = 4
NODE_MEMORY_MIB = 8192
#: A GPU, and cores of two threads that count as CPUs.
_GPU_NODE = f" Gres=gpu:1 Sockets=1 CoresPerSocket={NODE_CPUS // 2} ThreadsPerCore=2"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What can be chosen about a private cluster.

    Parameters
    ----------
    max_array_size
        MaxArraySize; small, so that splitting is seen.
    max_submit
        MaxSubmitJobs of the user.
    accounting
        Whether slurmdbd and its database run.
    """

    max_array_size: int = 51
    max_submit: int = 120
    accounting: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """Loopback ports of one cluster."""

    controller: int
    database_daemon: int
    database: int
    c1: int
    c2: int
    g1: int


def slurm_conf(folder: Path, ports: Ports, options: Options, user: str, host: str) -> str:
    """Text of slurm.conf.

    No cgroups are needed. ``OverMemoryKill`` with a sampling period of one second enforces memory; three slurmd on
    one host tell themselves apart by name and port. A requeued job waits until its credential has expired, hence the
    short life of one.
    """
    accounting = f"""
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports.database_daemon}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu
""" if options.accounting else "AccountingStorageType=accounting_storage/none\n"  # fmt: skip
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={NODE_CPUS} "
        f"RealMemory={NODE_MEMORY_MIB} State=UNKNOWN{further}"
        for name, port, further in (("c1", ports.c1, ""), ("c2", ports.c2, ""), ("g1", ports.g1, _GPU_NODE))
    )
    return f"""# A private cluster for tests, written by `sparsehpc testbed up`.
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports.controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=512
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
KillWait=2
JobRequeue=1
MaxArraySize={options.max_array_size}
MaxJobCount=5000
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{accounting}
{nodes}
PartitionName=cpu Nodes=c1,c2 Default=YES MaxTime=120 PriorityTier=10 PreemptMode=OFF
PartitionName=gpu Nodes=g1 MaxTime=120 PriorityTier=10 PreemptMode=OFF
PartitionName=spot Nodes=c1,c2 MaxTime=120 PriorityTier=1 PreemptMode=REQUEUE GraceTime=2
PartitionName=urgent Nodes=c1,c2 MaxTime=120 PriorityTier=100 PreemptMode=OFF
"""


def gres_conf() -> str:
    """Text of gres.conf: a GPU that is only counted. A gres without a file would register as none."""
    return "NodeName=g1 Name=gpu File=/dev/zero\n"


def slurmdbd_conf(folder: Path, ports: Ports, user: str, password: str) -> str:
    """Text of slurmdbd.conf; slurmdbd refuses it unless its mode is 600."""
    return f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports.database_daemon}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports.database}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
"""


def database_init(password: str) -> str:
    """SQL that MariaDB runs when it starts: the accounting database and its one user."""
    return (
        "CREATE DATABASE IF NOT EXISTS slurm_acct;\n"
        f"CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        f"CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON slurm_acct.* TO 'slurm'@'127.0.0.1';\n"
        "GRANT ALL ON slurm_acct.* TO 'slurm'@'localhost';\n"
    )

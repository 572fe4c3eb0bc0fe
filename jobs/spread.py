"""Aggregate on several nodes of one allocation: ``srun python -m jobs.spread RUN FOLDER``, one process a task.

Task 0 makes certificates, starts a Dask scheduler that speaks TLS only and has no dashboard, writes its address into
FOLDER on the shared disk, and aggregates through it; all other tasks are workers. With one task there is no scheduler
and no port: threads do it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm.tls import make_certificates, security
from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.files import write_text
from sparsehpc.core.layout import RunFolder

if TYPE_CHECKING:
    from distributed import Client

ADDRESS, TLS = "scheduler.address", "tls"
#: Workers that a slow node or file system delays are waited for so long; then those that came do the work.
WAIT_S = 120.0


def aggregate_spread(run: RunFolder, folder: Path, rank: int, size: int) -> dict[str, int]:
    """Take part in one aggregation.

    Parameters
    ----------
    run
        The run folder.
    folder
        Fresh folder on the shared disk that all tasks see.
    rank, size
        This task, and how many there are.

    Returns
    -------
    dict
        Coverage, in task 0; nothing in workers.
    """
    if size == 1:
        from aggregate.api import aggregate_run

        return aggregate_run(run).counts
    if rank == 0:
        make_certificates(folder / TLS)
        return asyncio.run(_lead(run, folder, size - 1))
    asyncio.run(_work(folder))
    return {}


async def _lead(run: RunFolder, folder: Path, workers: int) -> dict[str, int]:
    from distributed import Client, Scheduler

    settings = security(folder / TLS)
    async with Scheduler(protocol="tls", host=_host(), port=0, security=settings, **without_http()) as scheduler:
        scheduler.http_server.stop()
        write_text(folder / ADDRESS, scheduler.address + "\n")
        # The client blocks; in a thread of its own it leaves the scheduler's loop free.
        found = await asyncio.to_thread(_aggregate, run, Client, scheduler.address, settings, workers)
        await scheduler.close()
        return found


def _aggregate(run: RunFolder, client: type[Client], address: str, settings: Any, workers: int) -> dict[str, int]:
    from aggregate.api import aggregate_run

    with client(address, security=settings, set_as_default=False) as connected:
        came = _wait_for_workers(connected, workers)
        sys.stdout.write(f"{len(came)} of {workers} workers, on {', '.join(sorted(set(came)))}\n")
        sys.stdout.flush()
        return aggregate_run(run, scheduler=connected).counts


def _wait_for_workers(client: Client, workers: int) -> list[str]:
    until = time.monotonic() + WAIT_S
    while True:
        names = [
            str(info["name"]).partition("/")[0] for info in client.scheduler_info(n_workers=-1)["workers"].values()
        ]
        if len(names) >= workers or (names and time.monotonic() > until):
            return names
        if time.monotonic() > until + WAIT_S:
            raise SparseHPCError(f"no worker came within {2 * WAIT_S:.0f} s; aggregate on one node instead")
        time.sleep(0.2)


async def _work(folder: Path) -> None:
    from distributed import Worker

    address = await _address(folder)
    threads = len(os.sched_getaffinity(0))
    name = f"{os.environ.get('SLURMD_NODENAME') or socket.gethostname()}/{os.getpid()}"
    async with Worker(
        address, security=security(folder / TLS), nthreads=threads, name=name, host=_host(),
        local_directory=os.environ.get("TMPDIR"), death_timeout=WAIT_S, **without_http(),
    ) as worker:  # fmt: skip
        worker.http_server.stop()
        await worker.finished()


def without_http() -> dict[str, Any]:
    """Arguments for schedulers and workers: no dashboard, and no page on the HTTP server that Dask starts even so.

    That server listens on loopback only until it is stopped, which is done first thing.
    """
    import dask

    dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []})
    return {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


async def _address(folder: Path) -> str:
    """Address of the scheduler, once task 0 has written it; listing makes NFS show it."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        if any(path.name == ADDRESS for path in folder.iterdir()):
            return (folder / ADDRESS).read_text(encoding="utf-8").strip()
        await asyncio.sleep(0.2)
    raise SparseHPCError(f"no scheduler wrote its address into {folder} within {WAIT_S:.0f} s")


def _host() -> str:
    """Address by which other nodes reach this one; loopback where the allocation lies on one host."""
    return os.environ.get("SPARSEHPC_DASK_HOST") or socket.gethostbyname(socket.gethostname())


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: srun python -m jobs.spread RUN FOLDER")
    rank, size = (int(os.environ.get(name) or default) for name, default in (("SLURM_PROCID", 0), ("SLURM_NTASKS", 1)))
    counts = aggregate_spread(RunFolder(Path(sys.argv[1]).absolute()), Path(sys.argv[2]), rank, size)
    if counts:
        sys.stdout.write(", ".join(f"{count} {state}" for state, count in counts.items()) + "\n")


if __name__ == "__main__":
    main()

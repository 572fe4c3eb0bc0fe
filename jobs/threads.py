"""Thread pools of a node's process: as many as the job may use, whatever the machine has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sparsehpc.core.machine import core_of

#: Read once, when the libraries load: set before torch and numpy are imported.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")


def usable_cores(asked: int) -> int:
    """Cores that this process may run on, at most as many as the job asked for."""
    return max(1, min(len(os.sched_getaffinity(0)), asked))


def set_before_imports(threads: int, *, pinned: bool = False) -> None:
    """Set the environment that libraries read when they load; ``pinned``: every thread keeps a core of its own."""
    for variable in VARIABLES:
        os.environ[variable] = str(threads)
    if pinned:
        os.environ |= {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    # RAYON is the pool of the tokenizers library, which warns about forks when it is not told.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def set_after_imports(threads: int) -> None:
    """Set the pools that are there: torch sizes its own by the machine, and other imports reset it."""
    import threadpoolctl
    import torch

    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keep this process on so many logical processors, of different cores where there are enough; gives their numbers.

    Threads that were started before stay where they are.
    """
    before = os.sched_getaffinity(0)
    by_core: dict[str, list[int]] = {}
    for processor in sorted(before):
        by_core.setdefault(core_of(processor), []).append(processor)
    ordered = sorted(
        ((rank, processor) for core in by_core.values() for rank, processor in enumerate(core)),
    )
    chosen = tuple(sorted(processor for _, processor in ordered[:threads]))
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)

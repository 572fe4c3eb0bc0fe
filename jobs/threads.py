"""Thread pools of a node's process: as many as the job may use, whatever the machine has."""

from __future__ import annotations

import os

#: Read once, when the libraries load: set before torch and numpy are imported.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")


def usable_cores(asked: int) -> int:
    """Cores that this process may run on, at most as many as the job asked for."""
    return max(1, min(len(os.sched_getaffinity(0)), asked))


def set_before_imports(threads: int) -> None:
    """Set the environment that libraries read when they load."""
    for variable in VARIABLES:
        os.environ[variable] = str(threads)
    # RAYON is the pool of the tokenizers library, which warns about forks when it is not told.
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def set_after_imports(threads: int) -> None:
    """Set the pools that are there: torch sizes its own by the machine, and other imports reset it."""
    import threadpoolctl
    import torch

    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)

"""Thread pools follow the affinity mask and the request, also where libraries have made their own already."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from jobs.threads import usable_cores

#: A job on so many cores: every pool that is there after the imports, set too large on purpose before.
_JOB = """
import json, os, sys
cores, asked = int(sys.argv[1]), int(sys.argv[2])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from jobs.threads import set_after_imports, set_before_imports, usable_cores
threads = usable_cores(asked)
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "7"
import numpy, torch, threadpoolctl
numpy.ones((8, 8)) @ numpy.ones((8, 8))
torch.set_num_threads(7)
before = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
set_before_imports(threads)
set_after_imports(threads)
pools = {pool["user_api"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
print(json.dumps([threads, sorted(before), torch.get_num_threads(), pools, os.environ["OMP_NUM_THREADS"]]))
"""


@pytest.mark.parametrize(("cores", "asked", "threads"), [(1, 1, 1), (1, 4, 1), (2, 1, 1), (2, 2, 2), (2, 64, 2)])
def test_pools_are_as_large_as_the_mask_and_the_request_allow(cores: int, asked: int, threads: int) -> None:
    if len(os.sched_getaffinity(0)) < cores:
        pytest.skip(f"this machine has no {cores} cores")
    words = [sys.executable, "-c", _JOB, str(cores), str(asked)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    found, before, torch_threads, pools, variable = json.loads(answer.stdout)
    assert max(before) > threads, "the pools were larger before"
    assert (found, torch_threads, variable) == (threads, threads, str(threads))
    assert {"blas", "openmp"} <= set(pools)
    assert set(pools.values()) == {threads}


def test_never_less_than_one() -> None:
    assert usable_cores(0) == 1

"""The memory formula against the measured peak of real walks, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.bench.memory import run
from sparsehpc.models.memory import REFIT_BYTES_PER_WEIGHT

#: The formula leaves out what allocators keep, and what a method frees late.
TOLERANCE = 0.25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("magnitude", {}),
        ("sparsegpt", {}),
        ("magnitude", {"targets": "attention+mlp+embedding"}),
        ("wanda", {"targets": "attention+mlp+lm_head"}),
        ("sparsegpt", {"targets": "lm_head"}),
    ],
)
def test_predicted_peak_is_near_the_measured_one(method, changes):
    (row,) = run({"layers": "2", "methods": method, "threads": "1", **changes})
    assert row["zeros"] == row["prunable"] // 2
    assert row["predicted_gib"] == pytest.approx(row["peak_rss_gib"], rel=TOLERANCE)


REFIT = """
import torch
from sparsehpc.core.machine import peak_rss_bytes, resident_bytes
from sparsehpc.pruning.refit import refit
from sparsehpc.pruning.types import Pruned

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(2048, 128).double()
weight = torch.randn(32768, 128)
pruned, hessian = Pruned(weight.masked_fill(torch.rand(weight.shape) < 0.5, 0)), x.T @ x
before = resident_bytes()
refit(weight, pruned, hessian, "w")
print((peak_rss_bytes() - before) / weight.numel())
"""


@pytest.mark.slow
def test_a_refit_takes_the_bytes_a_weight_of_the_formula():
    answer = subprocess.run([sys.executable, "-c", REFIT], capture_output=True, text=True, check=True)
    assert float(answer.stdout) == pytest.approx(REFIT_BYTES_PER_WEIGHT, rel=TOLERANCE)

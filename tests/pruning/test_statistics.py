from __future__ import annotations

import pytest
import torch

from sparsehpc.core.errors import CellError
from sparsehpc.pruning.statistics import DTYPE, collector


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_windows_add_up_to_the_whole(dtype):
    torch.manual_seed(0)
    x = (torch.randn(57, 11) * 3).to(dtype)
    found = collector(("input_norm", "hessian"), 11)
    for part in (x[:20], x[20:21], x[21:]):
        found.add(part, "layer")
    exact = x.double()
    result = found.result()
    assert result["hessian"].dtype == result["input_norm"].dtype == DTYPE
    # float64 sums of 57 products: 1e-12 leaves room for any order of summation.
    assert torch.allclose(result["hessian"], exact.T @ exact, rtol=1e-12, atol=1e-12)
    assert torch.allclose(result["input_norm"], exact.norm(dim=0), rtol=1e-12)
    alone = collector(("input_norm",), 11)
    alone.add(x, "layer")
    assert torch.allclose(alone.result()["input_norm"], exact.norm(dim=0), rtol=1e-12)
    assert set(alone.result()) == {"input_norm"}
    assert found.tokens == alone.tokens == 57


def test_float16_squares_do_not_overflow():
    x = torch.full((3, 2), 60000.0, dtype=torch.float16)
    found = collector(("input_norm",), 2)
    found.add(x, "layer")
    assert torch.allclose(
        found.result()["input_norm"], torch.tensor(60000.0 * 3**0.5, dtype=DTYPE).expand(2), rtol=1e-3
    )


@pytest.mark.parametrize("statistic", ["input_norm", "hessian"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_names_the_layer_and_the_feature(statistic, bad):
    x = torch.ones(4, 3)
    x[2, 1] = bad
    with pytest.raises(CellError, match=r"model\.layers\.3\.fc1.*input feature 1"):
        collector((statistic,), 3).add(x, "model.layers.3.fc1")


def test_the_inputs_are_not_changed():
    x = torch.randn(5, 4, dtype=DTYPE)
    before = x.clone()
    found = collector(("hessian",), 4)
    found.add(x, "layer")
    found.add(x, "layer")
    assert torch.equal(x, before)


def test_mean_and_variance_over_all_windows_are_exact():
    # The public FLAP code changes its running mean in place before it uses the old one.
    torch.manual_seed(0)
    x = torch.randn(41, 5) * 2 + torch.arange(5)
    found = collector(("input_mean", "input_variance"), 5)
    for part in (x[:7], x[7:8], x[8:]):
        found.add(part, "layer")
    result = found.result()
    assert set(result) == {"input_mean", "input_variance"}
    assert torch.allclose(result["input_mean"], x.double().mean(0), rtol=1e-12)
    # The difference of two sums loses digits where the mean is large against the spread: 1e-10 of 16.
    assert torch.allclose(result["input_variance"], x.double().var(0, correction=0), atol=1e-9)

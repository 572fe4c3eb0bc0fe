"""Calibrated methods by eye, against brute force, and against their published algorithms."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch

from sparsehpc.core.errors import CellError, UserError
from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.structure import Parameter
from sparsehpc.pruning.base import Pruned, Site, make_method
from sparsehpc.pruning.least_squares import factor, fit_on_support, prepare, relative_error
from sparsehpc.pruning.refit import RIDGE, refit
from sparsehpc.pruning.rounding import rounded
from sparsehpc.pruning.statistics import collector

pytestmark = pytest.mark.usefixtures("one_thread")

_FILE = Path(__file__).parents[1] / "oracles" / "published_pruning.py"
_SPEC = importlib.util.spec_from_file_location("published_pruning", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
published = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(published)

TEXT = Calibration(corpus="file:x", windows=1, window_tokens=8)


def run(name, weight, x, sparsity="0.5", pattern="unstructured", refit=False, **options):
    pruning = Pruning(
        method=name,
        pattern=pattern,
        sparsity=sparsity,
        refit=refit,
        calibration=TEXT,
        options=tuple(sorted(options.items())),
    )
    method = make_method(pruning)
    statistics = collector(method.wanted_statistics, x.shape[1])
    statistics.add(x, "layer")
    parameter = Parameter("w", tuple(weight.shape), "mlp", "linear", 0, "fc1")
    return method.apply(weight, Site(parameter, 0), statistics.result())


def problem(rows=24, columns=300, tokens=500, seed=0):
    """A weight and correlated inputs of very different scales, as layers of language models have them."""
    torch.manual_seed(seed)
    mixing = torch.randn(columns, columns) / columns**0.5 + torch.eye(columns)
    x = torch.randn(tokens, columns) @ mixing * torch.logspace(-1, 1, columns)[torch.randperm(columns)]
    return torch.randn(rows, columns) * 0.1, x


# -- by eye -------------------------------------------------------------------------------------------------------


def test_wanda_on_eight_weights():
    weight = torch.tensor([[1.0, -2.0, 3.0, 4.0], [4.0, -3.0, 2.0, 1.0]])
    x = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))  # input norms 4, 3, 2, 1
    # Scores: 4 6 6 4 and 16 9 4 1. Row 0 ties twice: the lower column goes first, so both fours go.
    assert run("wanda", weight, x).weight.tolist() == [[0.0, -2.0, 3.0, 0.0], [4.0, -3.0, 0.0, 0.0]]
    # A quarter: of the two fours in row 0, the first.
    assert run("wanda", weight, x, "0.25").weight.tolist() == [[0.0, -2.0, 3.0, 4.0], [4.0, -3.0, 2.0, 0.0]]
    # Keep 1 of 4, not "remove 1 of 4".
    assert run("wanda", weight, x, "0.75", "1:4").weight.tolist() == [[0.0, 0.0, 3.0, 0.0], [4.0, 0.0, 0.0, 0.0]]


def test_ria_on_eight_weights():
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0], [9.0, 1.0, 1.0, 1.0]])
    x = torch.eye(4) * torch.tensor([1.0, 1.0, 4.0, 1.0])
    # Column sums 10 2 2 2, row sums 4 and 12. Row 0: .1+.25, .5+.25, (.5+.25)*2, .5+.25: column 0 goes, then 1.
    # Row 1: .9+.75, .5+.083, (.5+.083)*2, .5+.083: columns 1 and 3 go.
    assert run("ria", weight, x).weight.tolist() == [[0.0, 0.0, 1.0, 1.0], [9.0, 0.0, 1.0, 0.0]]


def test_sparsegpt_on_uncorrelated_inputs_is_wanda_over_the_block():
    weight = torch.tensor([[1.0, -2.0, 3.0, 4.0], [4.0, -3.0, 2.0, 1.0]])
    pruned = run("sparsegpt", weight, torch.eye(4)).weight
    # Nothing can make up for a weight, and the four smallest of all eight go: ties at 2 and 3 by flat index.
    assert pruned.tolist() == [[0.0, 0.0, 3.0, 4.0], [4.0, -3.0, 0.0, 0.0]]


def test_sparsegpt_moves_a_twin_weight_over():
    # Two features that are always equal: removing the first weight must put its value on the second.
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    pruned = run("sparsegpt", torch.tensor([[0.5, 1.0, 3.0]]), x, "0.34", damping=1e-6).weight
    assert pruned[0, 0] == 0.0
    # Exact up to the damping of 1e-6.
    assert torch.allclose(pruned, torch.tensor([[0.0, 1.5, 3.0]]), atol=1e-4)


# -- published algorithms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sparsity", ["0.3", "0.5", "0.9"])
def test_sparsegpt_equals_the_published_sweep(sparsity, seed):
    weight, x = problem(seed=seed)
    hessian = published.hessian_of(x.double())
    expected = published.sparsegpt(weight.double(), hessian, float(sparsity), extra=0)
    pruned = run("sparsegpt", weight, x, sparsity).weight
    # Ours sweeps in float32: a score within 1e-6 of the threshold may fall on the other side.
    assert int(((pruned == 0) != (expected == 0)).sum()) <= 2
    ours, theirs = (published.output_error(weight, w, hessian) for w in (pruned, expected))
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparsegpt_with_dead_features_equals_the_published_sweep_at_equal_damping(pattern):
    weight, x = problem(columns=256)
    x[:, ::7] = 0
    hessian = published.hessian_of(x.double())
    dead, removed_of = hessian.diagonal() == 0, (2, 4) if pattern == "2:4" else None
    # The public code lets a dead feature count as 1 in the mean diagonal that damping is a share of, ours as 0.
    ours, theirs = float(hessian.diagonal().mean()), float(hessian.diagonal().masked_fill(dead, 1).mean())
    expected = published.sparsegpt(
        weight.double(), hessian, 0.5, removed_of=removed_of, damping=0.01 * ours / theirs, extra=0
    )
    pruned = run("sparsegpt", weight, x, pattern=pattern).weight
    assert bool((pruned[:, dead] == 0).all())
    # Ours sweeps in float32: a score within 1e-6 of the threshold may fall on the other side.
    assert int(((pruned == 0) != (expected == 0)).sum()) <= 2
    errors = [published.output_error(weight, w, hessian) for w in (pruned, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    # Under inputs as large as those of language models the difference in damping is next to nothing ...
    assert theirs == pytest.approx(ours, rel=1e-3)
    # ... but the public rule depends on the scale: where inputs are tiny it damps everything away. Ours does not.
    scaled = run("sparsegpt", weight, x * 2**-14, pattern=pattern).weight
    assert torch.equal(scaled == 0, pruned == 0)
    tiny = published.sparsegpt(weight.double(), hessian * 2.0**-28, 0.5, removed_of=removed_of, extra=0)
    assert published.output_error(weight, tiny, hessian) > 1.2 * errors[0]


def test_sparsegpt_in_blocks_removes_its_quota_and_not_one_more():
    weight, x = problem()
    hessian = published.hessian_of(x.double())
    pruned = run("sparsegpt", weight, x).weight
    theirs = published.sparsegpt(weight.double(), hessian, 0.5)
    assert [int((pruned[:, a:b] == 0).sum()) for a, b in ((0, 128), (128, 256), (256, 300))] == [1536, 1536, 528]
    assert int((theirs == 0).sum()) == 3600 + 3  # one more in each of three blocks
    assert len({int(count) for count in (pruned == 0).sum(1)}) > 1  # rows share a quota, so they end unequal


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_sparsegpt_keep_n_of_m_equals_the_published_sweep(pattern):
    keep, of = map(int, pattern.split(":"))
    weight, x = problem(columns=256)
    hessian = published.hessian_of(x.double())
    expected = published.sparsegpt(weight.double(), hessian, 0, removed_of=(of - keep, of))
    pruned = run("sparsegpt", weight, x, pattern=pattern).weight
    assert int(((pruned == 0) != (expected == 0)).sum()) <= 4
    ours, theirs = (published.output_error(weight, w, hessian) for w in (pruned, expected))
    assert ours == pytest.approx(theirs, rel=1e-3)
    # The groups rank by weights that earlier columns have changed already.
    stale = weight.double() ** 2 * factor(hessian, 0.01, "w").upper.diagonal() ** 2
    from sparsehpc.pruning.selection import lowest_in_groups

    assert int(((pruned == 0) != lowest_in_groups(stale, keep, of)).sum()) > 50


@pytest.mark.parametrize("sparsity", ["0.3", "0.5", "0.75"])
def test_wanda_equals_the_published_selection(sparsity):
    weight, x = problem()
    expected = published.wanda(weight, [x[:200], x[200:350], x[350:]], float(sparsity))
    assert torch.equal(run("wanda", weight, x, sparsity).weight, expected)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_wanda_keep_n_of_m_equals_the_published_selection(pattern):
    keep, of = map(int, pattern.split(":"))
    weight, x = problem(columns=256)
    assert torch.equal(
        run("wanda", weight, x, pattern=pattern).weight, published.wanda(weight, [x], 0, (of - keep, of))
    )


def test_four_of_eight_is_not_two_of_four():
    weight, x = problem(columns=256)
    for name in ("wanda", "sparsegpt", "admm"):
        kept = run(name, weight, x, pattern="4:8").weight != 0
        assert bool((kept.view(-1, 8).sum(1) == 4).all())
        assert not bool((kept.view(-1, 4).sum(1) == 2).all())


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_ria_equals_the_published_score(exponent):
    weight, x = problem()
    expected = published.ria(weight.double(), x.double(), 0.5, exponent)
    assert torch.equal(run("ria", weight, x, exponent=exponent).weight == 0, expected == 0)


def test_statistics_scale_does_not_change_any_mask():
    # The public code divides by sequences, not tokens; a factor must not matter.
    weight, x = problem()
    for name in ("wanda", "sparsegpt", "ria", "admm"):
        assert torch.equal(run(name, weight, x).weight == 0, run(name, weight, x * 8).weight == 0)


# -- brute force --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_admm_comes_near_the_best_of_all_masks(seed):
    weight, x = problem(rows=1, columns=8, tokens=40, seed=seed)
    ready, _, mean = prepare(x.double().T @ x.double())
    ready.diagonal().add_(0.01 * mean)
    errors = []
    for gone in itertools.combinations(range(8), 4):
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[0, list(gone)] = True
        errors.append(published.output_error(weight, published.best_refit(weight.double(), mask, ready), ready))
    found = published.output_error(weight, run("admm", weight, x).weight, ready)
    errors.sort()
    assert errors[0] * (1 - 1e-6) <= found <= errors[len(errors) // 10]  # among the best tenth of 70 masks


@pytest.mark.parametrize(
    ("sparsity", "pattern"),
    [("0.5", "unstructured"), ("0.7", "unstructured"), ("0.5", "2:4"), ("0.5", "4:8"), ("0.75", "1:4")],
)
def test_admm_equals_the_published_algorithm(sparsity, pattern):
    weight, x = problem(rows=24, columns=96, tokens=300)
    hessian = x.double().T @ x.double()
    count = weight.numel() - int(float(sparsity) * weight.numel())

    def keep(values):
        kept, of = map(int, pattern.split(":")) if ":" in pattern else (count, values.numel())
        groups = values.reshape(-1, of)
        top = groups.topk(kept, dim=1).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, top, True).view(values.shape)

    expected = published.alps(weight.double(), hessian, keep)
    pruned = run("admm", weight, x, sparsity, pattern).weight
    assert int((expected != 0).sum()) == int((pruned != 0).sum()) == count
    # Ours iterates in float32, so that a few weights beside the threshold may end on the other side.
    assert int(((pruned == 0) != (expected == 0)).sum()) <= 0.01 * weight.numel()
    ours, theirs = (published.output_error(weight, w, hessian) for w in (pruned, expected))
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_each_method_beats_the_simpler_one_on_correlated_inputs(pattern):
    weight, x = problem(rows=48, columns=256, tokens=2000)
    hessian = x.double().T @ x.double()
    error = {
        name: relative_error(weight, run(name, weight, x, pattern=pattern).weight, hessian)
        for name in ("magnitude", "wanda", "sparsegpt", "admm")
        if name != "magnitude" or pattern != "unstructured"
    }
    if "magnitude" in error:
        assert error["wanda"] < error["magnitude"]
    assert error["admm"] < error["sparsegpt"] < error["wanda"]


def test_refit_is_the_exact_least_squares_solution():
    weight, x = problem(rows=6, columns=40, tokens=90)
    hessian = x.double().T @ x.double()
    pruned = run("wanda", weight, x)
    found = refit(weight, pruned, hessian, "w")
    ready, _, mean = prepare(hessian)
    ready.diagonal().add_(RIDGE * mean)
    expected = published.best_refit(weight.double(), pruned.weight == 0, ready)
    # Conjugate gradients to a residual of 1e-6, rounded to float32.
    assert torch.allclose(found.weight.double(), expected, atol=1e-5 * float(expected.abs().max()))
    assert found.notes["refit_residual"] <= 1e-6
    assert found.notes["refit_steps"] <= 200


def test_refit_with_fewer_tokens_than_features_stays_near_the_dense_weights():
    weight, x = problem(rows=4, columns=64, tokens=10)
    found = refit(weight, run("wanda", weight, x), x.double().T @ x.double(), "w").weight
    assert float(found.abs().max()) < 10 * float(weight.abs().max())


def test_refit_of_nothing_changes_no_bit():
    weight, x = problem(rows=4, columns=16, tokens=30)
    unpruned = Pruned(weight.clone())
    assert refit(weight, unpruned, x.double().T @ x.double(), "w") is unpruned


def test_fit_on_support_solves_the_normal_equations():
    weight, x = problem(rows=5, columns=30, tokens=100)
    gram = x.double().T @ x.double() + torch.eye(30)
    support = torch.rand(30, 5) < 0.5
    fit = fit_on_support(gram, weight.double().T, support, torch.zeros(30, 5).double(), 500, 1e-10)
    expected = published.best_refit(weight.double(), ~support.T, gram).T
    assert torch.allclose(fit.solution, expected, atol=1e-8)


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_the_inverse_of_the_factor_is_the_published_one():
    _, x = problem(columns=300, tokens=900)
    hessian = x.double().T @ x.double()
    found = factor(hessian, 0.01, "w")
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(300).double()
    assert torch.allclose(found.upper @ found.upper.T, damped, rtol=1e-12, atol=1e-12 * float(damped.max()))
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    inverse = torch.linalg.inv(found.upper)
    assert torch.allclose(inverse, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    # A diagonal block of the inverse is the inverse of the block.
    block = torch.linalg.inv(found.upper[128:256, 128:256])
    assert torch.allclose(block, inverse[128:256, 128:256], rtol=1e-7, atol=1e-12)
    assert found.notes() == {}


def test_a_failing_cholesky_raises_damping_in_recorded_steps():
    # Rounding can leave a Hessian slightly indefinite; here an eigenvalue of -0.05 of the mean diagonal.
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(32, 32).double()).Q
    values = torch.ones(32).double()
    values[0] = -0.05
    hessian = vectors @ torch.diag(values) @ vectors.T
    found = factor(hessian, 0.01, "layer")
    assert found.raised == 1
    assert found.notes() == {"damping": pytest.approx(0.1), "damping_raised": 1}
    assert factor(hessian, 0.0, "layer").raised == 4  # 1e-4, 1e-3, 1e-2, 1e-1
    with pytest.raises(CellError, match="inputs of layer"):
        factor(-100 * hessian + 101 * torch.diag(hessian.diagonal()), 0.01, "layer")


@pytest.mark.parametrize(("name", "refit"), [("sparsegpt", False), ("admm", False), ("wanda", True)])
def test_what_overflows_in_the_models_type_is_an_error_and_not_infinite(name, refit):
    # Features that are almost equal: what stays takes over what goes, and float16 ends at 65504.
    torch.manual_seed(0)
    x = torch.randn(200, 1) + 0.01 * torch.randn(200, 16)
    weight = torch.full((4, 16), 6e4)
    found = run(name, weight, x, refit=refit).weight
    assert float(found.abs().max()) > 65504
    with pytest.raises(CellError, match="w is not finite in float16, which holds up to 65504"):
        run(name, weight.half(), x, refit=refit)
    assert bool(torch.isfinite(run(name, weight.bfloat16(), x, refit=refit).weight).all())


def test_a_kept_weight_that_underflows_becomes_the_smallest_of_its_sign():
    values = torch.tensor([[1e-9, -1e-9, 0.0, 2.0, -3e-8, 5e-8]])
    smallest = 2.0**-24
    assert rounded(values, torch.float16, "w").tolist() == [[smallest, -smallest, 0.0, 2.0, -smallest, smallest]]
    tiny = rounded(torch.tensor([1e-60, -1e-60, 0.0], dtype=torch.float64), torch.float32, "w")
    assert tiny.tolist() == [2.0**-149, -(2.0**-149), 0.0]
    assert rounded(values, torch.float32, "w") is values


def test_notes_of_a_raised_damping_reach_the_result():
    weight = torch.randn(4, 32)
    hessian = torch.eye(32).double()
    hessian[0, 1] = hessian[1, 0] = 1.05
    pruning = Pruning(method="sparsegpt", pattern="unstructured", sparsity="0.5", calibration=TEXT)
    site = Site(Parameter("w", (4, 32), "mlp", "linear", 0, "fc1"), 0)
    assert make_method(pruning).apply(weight, site, {"hessian": hessian}).notes["damping_raised"] == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sparsegpt", {"block_columns": 100}),
        ("sparsegpt", {"damping": -1.0}),
        ("admm", {"iterations": 0}),
        ("admm", {"rho": 0.0}),
        ("ria", {"exponent": 5.0}),
    ],
)
def test_options_out_of_range_name_the_legal_ones(name, options):
    with pytest.raises(UserError, match="legal"):
        run(name, torch.ones(2, 4), torch.eye(4), **options)

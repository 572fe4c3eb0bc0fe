"""Budgets over layers: the mean kept exactly, quotas in whole weights, what cannot be refused at plan time."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehpc.core.errors import CellError
from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.structure import Parameter
from sparsehpc.pruning import allocation
from sparsehpc.pruning.base import METHODS, DenseSurvey, Site, make_method

TEXT = Calibration(corpus="file:x", windows=1, window_tokens=8)


def parameter(layer, rows=8, columns=16, name=""):
    return Parameter(name or f"layers.{layer}.w", (rows, columns), "mlp", "linear", layer, "w")


def combination(method="wanda", kind="owl", sparsity="0.5", **more):
    more.setdefault("pattern", "unstructured")
    return Pruning(method=method, allocation=kind, sparsity=sparsity, calibration=TEXT, **more)


def test_owl_by_eye():
    # Three layers of 100 weights whose outlier ratios are 0, 1 and 2 %: they keep 0, 8 and 16 points more, mean 8.
    parameters = [parameter(layer, 10, 10) for layer in range(3)]
    shares = allocation.owl_budgets(parameters, {0: 0.0, 1: 0.01, 2: 0.02}, Fraction(1, 2))
    assert [shares[p.name] for p in parameters] == [Fraction(58, 100), Fraction(50, 100), Fraction(42, 100)]


def test_owl_weighs_by_size():
    # The published code keeps the mean over layers only where all are equally large.
    parameters = [parameter(0, 10, 10), parameter(1, 30, 10)]
    shares = allocation.owl_budgets(parameters, {0: 0.0, 1: 1.0}, Fraction(1, 2))
    assert shares["layers.0.w"] == Fraction(62, 100)  # + 12 points of 100 weights
    assert shares["layers.1.w"] == Fraction(138, 300)  # - 4 points of 300 weights
    assert sum(shares[p.name] * p.numel for p in parameters) == 200


def test_equal_outliers_are_uniform_and_divide_by_nothing():
    parameters = [parameter(layer) for layer in range(3)]
    assert set(allocation.owl_budgets(parameters, dict.fromkeys(range(3), 0.03), Fraction(1, 4)).values()) == {
        Fraction(1, 4)
    }


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    ratios=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    percent=st.integers(16, 84),
)
def test_quotas_are_whole_and_sum_to_the_models_count(sizes, ratios, percent):
    parameters = [parameter(layer, size, 7) for layer, size in enumerate(sizes)]
    sparsity = Fraction(percent, 100)
    shares = allocation.owl_budgets(parameters, dict(enumerate(ratios[: len(sizes)])), sparsity)
    quotas = [shares[p.name] * p.numel for p in parameters]
    assert all(quota.denominator == 1 for quota in quotas)
    assert sum(quotas) == sparsity * sum(p.numel for p in parameters) // 1
    assert all(0 <= share <= 1 for share in shares.values())


def test_outlier_ratio_looks_at_a_layer_as_a_whole():
    parameters = [parameter(0, 1, 10, "a"), parameter(0, 1, 10, "b")]
    scores = {"a": torch.ones(1, 10), "b": torch.ones(1, 10)}
    scores["b"][0, 3] = 31.0  # mean over both 2.5; over b alone 4, still an outlier at 5 x 4
    scores["a"][0, 0] = 13.0  # above 5 x 3.1, not above 5 x its own matrix's mean if that were 2.2
    ratios = allocation.outlier_ratios(parameters, scores.__getitem__)
    assert ratios == {0: 1 / 20}  # mean (9 + 13 + 9 + 31) / 20 = 3.1: only 31 exceeds 15.5


def test_global_shares_follow_one_ranking():
    parameters = [parameter(0, 1, 4, "a"), parameter(1, 1, 4, "b")]
    scores = {"a": torch.tensor([[1.0, 2.0, 3.0, 9.0]]), "b": torch.tensor([[2.0, 7.0, 8.0, 9.0]])}
    shares = allocation.global_budgets(parameters, scores.__getitem__, Fraction(1, 2))
    assert shares == {"a": Fraction(3, 4), "b": Fraction(1, 4)}


def test_wanda_under_owl_removes_its_rows_share_of_each_layers_budget():
    torch.manual_seed(0)
    parameters = [parameter(layer, 20, 50) for layer in range(3)]
    weights = {p.name: torch.randn(20, 50) for p in parameters}
    weights["layers.2.w"][:, :3] *= 40  # outliers
    norms = {p.name: torch.ones(50).double() for p in parameters}
    method = make_method(combination())
    survey = DenseSurvey({name: {"input_norm": norm} for name, norm in norms.items()}, {})
    method.learn(parameters, weights.__getitem__, survey)
    assert method.budgets is not None
    zeros = {}
    for index, p in enumerate(parameters):
        pruned = method.apply(weights[p.name], Site(p, index), {"input_norm": norms[p.name]}).weight
        zeros[p.name] = int((pruned == 0).sum())
        assert zeros[p.name] == 20 * (method.budgets[p.name] * 50 // 1)
    assert zeros["layers.2.w"] < zeros["layers.0.w"]
    assert sum(method.budgets[p.name] * p.numel for p in parameters) == 1500


def test_every_method_follows_its_budget():
    torch.manual_seed(0)
    where = parameter(0, 16, 32)
    weight, x = torch.randn(16, 32), torch.randn(64, 32).double()
    statistics = {"input_norm": x.norm(dim=0), "hessian": x.T @ x}
    for name, kind in METHODS:
        if "owl" not in kind.allocations:
            continue
        method = make_method(combination(name))
        method.budgets = {where.name: Fraction(1, 4)}
        assert int((method.apply(weight, Site(where, 0), statistics).weight == 0).sum()) == 128, name


def test_allocating_needs_norms_of_every_weight():
    with pytest.raises(CellError, match=r"input norms of layers\.0\.w"):
        allocation.budgets(combination(), [parameter(0)], {}.__getitem__, {})


def test_the_methods_own_rule_asks_for_no_look_at_the_dense_model():
    assert make_method(combination(kind="uniform")).dense_statistics is None
    assert make_method(combination()).dense_statistics == ("input_norm",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sparsity": "0.9"}, "more than all of a layer; legal: 0.16 to 0.84"),
        ({"sparsity": "0.1"}, "less than none"),
        ({"pattern": "2:4"}, "2:4 fixes it"),
        ({"targets": ("attention", "mlp", "lm_head")}, "not at lm_head"),
        ({"sparsity": "0.84"}, None),
        ({"kind": "global", "sparsity": "0.9"}, None),
        ({"kind": "uniform", "pattern": "2:4"}, None),
    ],
)
def test_what_cannot_be_is_said_at_plan_time(changes, reason):
    found = METHODS.get("wanda").unsupported(combination(**changes), [parameter(0)])
    assert found is None if reason is None else reason in str(found)


def test_what_is_the_methods_own_rule_is_not_planned_twice():
    assert METHODS.get("wanda").canonical_allocation("uniform") == "default"
    assert METHODS.get("magnitude").canonical_allocation("global") == "default"
    assert METHODS.get("wanda").canonical_allocation("global") == "global"
    assert METHODS.get("magnitude").canonical_allocation("uniform") == "uniform"  # which it has not: refused later


def test_what_learns_needs_text():
    assert not METHODS.get("magnitude").needs_calibration()
    assert METHODS.get("magnitude").needs_calibration(refit=True)
    assert METHODS.get("magnitude-layerwise").needs_calibration("owl")
    assert not METHODS.get("magnitude-layerwise").needs_calibration("uniform")

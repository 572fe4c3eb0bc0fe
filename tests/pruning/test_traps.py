"""Traps of public pruning code that no other test of this folder names: each is wrong there, and right here."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.family import structure_from_config
from sparsehpc.models.structure import Parameter
from sparsehpc.pruning.base import METHODS, DenseSurvey, Site, make_method
from sparsehpc.pruning.selection import lowest_in_groups
from sparsehpc.pruning.statistics import collector
from sparsehpc.pruning.structured import units_by_layer

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = Calibration(corpus="file:x", windows=1, window_tokens=8)
LEARNING = [name for name, kind in METHODS if kind.statistics]


def combination(name, pattern="unstructured", sparsity="0.5", **more):
    calibration = TEXT if METHODS.get(name).needs_calibration(refit=more.get("refit", False)) else None
    return Pruning(method=name, pattern=pattern, sparsity=sparsity, calibration=calibration, **more)


def statistics_of(x):
    found = collector(("input_norm", "hessian"), x.shape[1])
    found.add(x, "layer")
    return found.result()


def prune(pruning, weights, x=None):
    """Weights by name through one method; all of them read the inputs ``x``."""
    parameters = [Parameter(name, tuple(w.shape), "mlp", "linear", 0, "fc1") for name, w in weights.items()]
    method = make_method(pruning)
    method.survey(parameters, weights.__getitem__)
    found = {} if x is None else statistics_of(x)
    return {p.name: method.apply(weights[p.name], Site(p, i), found).weight for i, p in enumerate(parameters)}


def test_magnitude_of_the_model_of_a_matrix_and_of_a_row_are_three_methods():
    # The public code of Wanda calls the second one "magnitude", most papers mean the first.
    torch.manual_seed(0)
    weights = {"a": torch.randn(4, 10) * torch.tensor([1.0, 1.0, 1.0, 9.0])[:, None], "b": torch.randn(4, 10) * 3}
    zeros = {
        name: {key: (w == 0).sum(1).tolist() for key, w in prune(combination(name), weights).items()}
        for name in ("magnitude", "magnitude-layerwise", "magnitude-rowwise")
    }
    assert sum(zeros["magnitude"]["a"]) > 20 > sum(zeros["magnitude"]["b"])
    assert sum(zeros["magnitude"]["a"] + zeros["magnitude"]["b"]) == 40
    assert [sum(rows) for rows in zeros["magnitude-layerwise"].values()] == [20, 20]
    assert zeros["magnitude-layerwise"]["a"][3] < 5
    assert zeros["magnitude-rowwise"] == {"a": [5] * 4, "b": [5] * 4}


@pytest.mark.parametrize("name", LEARNING)
def test_more_dead_features_than_the_quota_do_not_exceed_it(name):
    # SparseGPT's public code zeroes the column of every dead feature, whatever was asked for.
    torch.manual_seed(0)
    x = torch.randn(90, 32)
    x[:, 8:] = 0
    weight = torch.randn(16, 32)
    pruned = prune(combination(name, sparsity="0.5"), {"w": weight}, x)["w"]
    assert int((pruned == 0).sum()) == 256
    assert bool((pruned[:, :8] != 0).all())  # what is read stays, as there is enough that is not


@pytest.mark.parametrize(
    ("name", "pattern"), [(n, p) for n, kind in METHODS for p in ("2:4", "4:8", "1:4") if p in kind.patterns]
)
def test_a_group_with_fewer_weights_than_it_may_keep_keeps_them_all(name, pattern):
    keep, of = map(int, pattern.split(":"))
    torch.manual_seed(0)
    weight = torch.randn(6, 48)
    weight[torch.rand(6, 48) < 0.7] = 0
    pruned = prune(combination(name, pattern, str(1 - Fraction(keep, of)).replace("3/4", "0.75").replace("1/2", "0.5")),
                   {"w": weight}, torch.randn(90, 48))["w"]  # fmt: skip
    before, after = ((w != 0).view(-1, of).sum(1) for w in (weight, pruned))
    if name in ("sparsegpt", "admm"):  # an update may bring a zero back where the group has room for it
        assert int(after.max()) <= keep
        assert bool((after >= before.clamp(max=keep)).all())
    else:
        assert torch.equal(after, before.clamp(max=keep))


def test_ria_keeps_columns_where_they_are_under_keep_n_of_m():
    # Its public code permutes columns first, which no format of N:M could undo.
    torch.manual_seed(0)
    weight, x = torch.randn(8, 16), torch.randn(60, 16) * torch.linspace(0.1, 4, 16)
    pruned = prune(combination("ria", "2:4"), {"w": weight}, x)["w"]
    size = weight.double().abs()
    scores = (size / size.sum(0) + size / size.sum(1, keepdim=True)) * x.double().norm(dim=0) ** 0.5
    assert torch.equal(pruned == 0, lowest_in_groups(scores, 2, 4))


@pytest.mark.parametrize("name", [name for name, kind in METHODS if kind.refits])
def test_a_refit_of_an_empty_matrix_is_empty(name):
    torch.manual_seed(0)
    pruned = prune(combination(name, sparsity="1", refit=True), {"w": torch.randn(4, 16)}, torch.randn(50, 16))["w"]
    assert torch.equal(pruned, torch.zeros(4, 16))


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("name", [n for n in METHODS.names() if "unstructured" in METHODS.get(n).patterns])
def test_equal_statistics_give_equal_bits_for_any_number_of_threads(name, refit):
    # Large enough for products and decompositions to be shared between threads.
    torch.manual_seed(0)
    x = torch.randn(600, 384) @ (torch.randn(384, 384) / 20 + torch.eye(384)) * torch.logspace(-1, 1, 384)
    weights, found = {"w": torch.randn(192, 384) * 0.05}, statistics_of(x)
    pruned = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        options = (("iterations", 12),) if name == "admm" else ()
        method = make_method(combination(name, refit=refit, options=options))
        site = Site(Parameter("w", (192, 384), "mlp", "linear", 0, "fc1"), 0)
        method.survey([site.parameter], weights.__getitem__)
        pruned.append(method.apply(weights["w"], site, found).weight)
    assert torch.equal(pruned[0] == 0, pruned[1] == 0)
    if not refit:
        assert torch.equal(*pruned)


def test_a_random_mask_is_the_same_in_every_process_and_grows_with_sparsity():
    # Public code seeds by Python's hash of a name, which another process draws anew.
    weights = {"w": torch.ones(2, 8), "v": torch.ones(2, 8)}
    half = prune(combination("random"), weights)
    assert half["w"].tolist() == [[0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1, 1, 0]]
    assert half["v"].tolist() == [[1, 1, 0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 0, 1, 1]]
    more = prune(combination("random", sparsity="0.75"), weights)
    assert all(bool((more[name][half[name] == 0] == 0).all()) for name in weights)


def test_any_number_of_calibration_windows_counts():
    # Wanda's public code has room for 128.
    x = torch.randn(130 * 3, 8)
    found = collector(("input_norm",), 8)
    for window in x.view(130, 3, 8):
        found.add(window, "layer")
    assert torch.allclose(found.result()["input_norm"], x.double().norm(dim=0), rtol=1e-12)


# -- structured ---------------------------------------------------------------------------------------------------


def tensors_of(structure, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {p.name: torch.randn(p.shape, generator=generator) for p in structure.parameters if p.kind == "linear"}


def columns_of(units, unit):
    return [column for column, owner in enumerate(units.reader.owner.tolist()) if owner == unit]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
@pytest.mark.parametrize("pattern", ["heads", "neurons"])
def test_unit_scores_equal_brute_force(family, pattern):
    # Under grouped queries a unit is a key/value head with the queries that share it; no size is hard-coded.
    structure = structure_from_config(FAMILIES[family])
    tensors = tensors_of(structure)
    units = units_by_layer(structure.prunable(("attention", "mlp")), pattern)[1]
    name = units.reader.parameter.name
    norm = torch.rand(units.reader.parameter.shape[1]).double()
    wanda = make_method(combination("wanda", pattern)).unit_scores(units, tensors, {name: {"input_norm": norm}})
    magnitude = make_method(combination("magnitude", pattern)).unit_scores(units, tensors, {})
    for unit in range(units.count):
        read = sum(float((tensors[name][:, c].double().abs() * norm[c]).sum()) for c in columns_of(units, unit))
        assert float(wanda[unit]) == pytest.approx(read, rel=1e-12)
        total = 0.0
        for part in units.parts:
            for index, owner in enumerate(part.owner.tolist()):
                if owner == unit:
                    total += float(tensors[part.parameter.name].double().select(part.axis, index).square().sum())
        assert float(magnitude[unit]) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_flap_on_heads_equals_brute_force(family):
    # The public code hard-codes heads of 128 features and squares the scores of attention.
    # With two heads a layer all standardised scores are plus or minus one.
    more = {"num_attention_heads": 16, "num_key_value_heads": 4} if family == "llama" else {}
    structure = structure_from_config(FAMILIES[family] | more)
    tensors = tensors_of(structure)
    parameters = structure.prunable(("attention", "mlp"))
    torch.manual_seed(1)
    inputs = {
        p.name: {"input_variance": torch.rand(p.shape[1]).double(), "input_mean": torch.randn(p.shape[1]).double()}
        for p in parameters
    }
    method = make_method(combination("flap", "heads", "0.34"))
    method.learn(parameters, tensors.__getitem__, DenseSurvey(inputs, {}))
    layers = units_by_layer(parameters, "heads")
    scores = []
    for units in layers:
        name = units.reader.parameter.name
        raw = [
            sum(float(inputs[name]["input_variance"][c]) * float(tensors[name][:, c].double().square().sum())
                for c in columns_of(units, unit))
            for unit in range(units.count)
        ]  # fmt: skip
        scores += [((value - np.mean(raw)) / np.std(raw), units.layer, unit) for unit, value in enumerate(raw)]
    gone = {(layer, unit) for _, layer, unit in sorted(scores)[: int(0.34 * len(scores))]}
    found = set()
    for units in layers:
        sites = [Site(p, i) for i, p in enumerate(parameters) if p.layer == units.layer]
        results = method.prune_section({s.parameter.name: tensors[s.parameter.name] for s in sites}, sites, {})
        name = units.reader.parameter.name
        empty = {unit for unit in range(units.count) if not results[name].weight[:, columns_of(units, unit)].any()}
        found |= {(units.layer, unit) for unit in empty}
        lost = [column for unit in empty for column in columns_of(units, unit)]
        expected = tensors[name][:, lost].double() @ inputs[name]["input_mean"][lost]
        change = method.bias_changes.get(name, torch.zeros(len(expected)))
        assert torch.allclose(change.double(), expected, atol=1e-5)
    assert found == gone


@pytest.mark.parametrize("method", ["magnitude", "wanda", "random"])
@pytest.mark.parametrize("pattern", ["heads", "neurons"])
def test_zero_percent_of_units_is_the_dense_model_bit_for_bit(method, pattern):
    structure = structure_from_config(FAMILIES["llama"])
    tensors = tensors_of(structure)
    parameters = structure.prunable(("attention", "mlp"))
    found = make_method(combination(method, pattern, "0"))
    norms = {p.name: {"input_norm": torch.ones(p.shape[1]).double()} for p in parameters}
    for layer in range(3):
        sites = [Site(p, i) for i, p in enumerate(parameters) if p.layer == layer]
        weights = {s.parameter.name: tensors[s.parameter.name] for s in sites}
        for name, result in found.prune_section(weights, sites, norms).items():
            assert torch.equal(result.weight, tensors[name])

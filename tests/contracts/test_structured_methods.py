"""What every method with a structured pattern must keep: heads, neurons and layers of a tiny decoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sparsehpc.core.errors import CellError
from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.family import structure_from_config
from sparsehpc.pruning.base import METHODS, DenseSurvey, Site, make_method
from sparsehpc.pruning.patterns import PATTERNS, removed_count
from sparsehpc.pruning.statistics import collector
from sparsehpc.pruning.structured import GROUPS, units_by_layer

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = Calibration(corpus="file:x", windows=1, window_tokens=8)
CASES = [(name, p) for name, kind in METHODS for p in kind.patterns if PATTERNS[p].kind == "structured"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
STRUCTURE = structure_from_config(
    {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8,
    }
)


def combination(name, pattern, sparsity="0.5", **more):
    needs = METHODS.get(name).needs_calibration(refit=more.get("refit", False))
    more = {"seed": 718, "targets": GROUPS[pattern]} | more
    return Pruning(method=name, pattern=pattern, sparsity=sparsity, calibration=TEXT if needs else None, **more)


def weights(pattern, dtype=torch.float32, value=None):
    torch.manual_seed(0)
    made = {p.name: torch.randn(p.shape) * 0.05 for p in STRUCTURE.prunable(GROUPS[pattern])}
    return {name: (t if value is None else torch.full_like(t, value)).to(dtype) for name, t in made.items()}


def statistics_of(names, parameters, scale):
    """Statistics of the inputs of every weight, other ones for each layer; ``scale`` 0 for no input at all."""
    found = {}
    for index, p in enumerate(parameters):
        torch.manual_seed(index)
        one = collector(names, p.shape[1])
        one.add(torch.randn(60, p.shape[1]) * scale, p.name)
        found[p.name] = one.result()
    return found


def prune_model(pruning, tensors, scale=1.0, influence=None):
    """All weights through survey, learning and one section after another, as the pipeline does it; and the method."""
    method = make_method(pruning)
    parameters = STRUCTURE.prunable(pruning.targets)
    type(method).survey_all([method], parameters, tensors.__getitem__)
    if method.dense_statistics is not None:
        inputs = statistics_of(method.dense_statistics, parameters, scale)
        influence = influence or {layer: 0.1 * ((layer + 2) % 4) for layer in range(STRUCTURE.layers)}
        method.learn(parameters, tensors.__getitem__, DenseSurvey(inputs, influence))
    statistics = statistics_of(method.wanted_statistics, parameters, scale) if method.wanted_statistics else {}
    pruned = {}
    for layer in range(STRUCTURE.layers):
        sites = [Site(p, index) for index, p in enumerate(parameters) if p.layer == layer]
        section = {site.parameter.name: tensors[site.parameter.name] for site in sites}
        pruned |= {name: r.weight for name, r in method.prune_section(section, sites, statistics).items()}
    return pruned, method


def gone_units(pruned, pattern):
    """Units that are zero in all of their matrices, by layer; every other weight must have stayed."""
    gone = []
    if pattern == "layers":
        for layer in range(STRUCTURE.layers):
            empty = [not pruned[p.name].any() for p in STRUCTURE.prunable(GROUPS[pattern]) if p.layer == layer]
            assert len(set(empty)) == 1
            gone.append([layer] if empty[0] else [])
        return gone
    for units in units_by_layer(STRUCTURE.prunable(GROUPS[pattern]), pattern):
        found = []
        for part in units.parts:
            empty = (pruned[part.parameter.name] == 0).all(1 - part.axis)
            dead = {unit for unit in range(units.count) if empty[torch.from_numpy(part.owner == unit)].all()}
            assert int(empty.sum()) == sum(int((part.owner == unit).sum()) for unit in dead)
            found.append(dead)
        assert all(dead == found[0] for dead in found)
        gone.append(sorted(found[0]))
    return gone


def same_bits(first, second):
    return all(torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in second)


def legal_counts(pattern, sparsity):
    """The share is that of every layer's units, or of the whole model's."""
    if pattern == "layers":
        return {removed_count(sparsity, STRUCTURE.layers)}
    counts = [units.count for units in units_by_layer(STRUCTURE.prunable(GROUPS[pattern]), pattern)]
    return {sum(removed_count(sparsity, count) for count in counts), removed_count(sparsity, sum(counts))}


@pytest.mark.parametrize(("name", "pattern"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", ["0.25", "0.6"])
def test_exactly_the_share_of_units_goes_whole_and_all_else_stays(name, pattern, dtype, sparsity):
    dense = weights(pattern, dtype)
    before = {key: tensor.clone() for key, tensor in dense.items()}
    pruned, method = prune_model(combination(name, pattern, sparsity), dense)
    gone = gone_units(pruned, pattern)
    assert sum(map(len, gone)) in legal_counts(pattern, method.pruning.fraction)
    assert all(torch.equal(tensor[tensor != 0], dense[key][tensor != 0]) for key, tensor in pruned.items())
    assert same_bits(dense, before)
    for key, tensor in pruned.items():
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert tensor.data_ptr() != dense[key].data_ptr()
    assert all(change is None or change.dtype == dtype for change in method.bias_changes.values())


@pytest.mark.parametrize(("name", "pattern"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_percent_is_the_dense_model_bit_for_bit(name, pattern, dtype):
    dense = weights(pattern, dtype)
    next(iter(dense.values()))[0, 0] = -0.0
    pruned, method = prune_model(combination(name, pattern, "0"), dense)
    assert same_bits(pruned, dense)
    assert method.bias_changes == {}


@pytest.mark.parametrize(("name", "pattern"), CASES)
def test_nan_names_the_tensor_wherever_it_is(name, pattern):
    for part in {p.projection: p for p in STRUCTURE.prunable(GROUPS[pattern]) if p.layer == 2}.values():
        dense = weights(pattern)
        dense[part.name][3, 4] = float("nan")
        with pytest.raises(CellError, match=part.name):
            prune_model(combination(name, pattern), dense)


@pytest.mark.parametrize(("name", "pattern"), CASES)
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_ties_go_by_index_and_inputs_may_all_be_zero(name, pattern, scale):
    dense = weights(pattern, value=0.25)
    pruning = combination(name, pattern)
    # With the same inputs for every unit nothing tells them apart.
    influence = dict.fromkeys(range(STRUCTURE.layers), 0.3)
    first, method = prune_model(pruning, dense, scale, influence)
    assert same_bits(first, prune_model(pruning, dense, scale, influence)[0])
    gone = gone_units(first, pattern)
    assert sum(map(len, gone)) in legal_counts(pattern, pruning.fraction)
    draws = not same_bits(first, prune_model(dataclasses.replace(pruning, seed=1), dense, scale, influence)[0])
    tied = scale == 0 or not (method.wanted_statistics or method.dense_statistics)
    if tied and not draws:
        if pattern == "layers":
            assert gone == [[0], [1], [], []]
        else:  # the lowest of every layer, or of the first layers as far as one unit of each must stay
            assert all(units == list(range(len(units))) for units in gone)
            assert [len(units) for units in gone] == sorted(map(len, gone), reverse=True)


@pytest.mark.parametrize(("name", "pattern"), [case for case in CASES if METHODS.get(case[0]).refits])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_refit_keeps_the_units(name, pattern, dtype):
    dense = weights(pattern, dtype)
    plain, _ = prune_model(combination(name, pattern), dense)
    refitted, _ = prune_model(combination(name, pattern, refit=True), dense)
    assert all(torch.equal(plain[key] == 0, refitted[key] == 0) for key in dense)
    assert all(tensor.dtype == dtype for tensor in refitted.values())
    assert not same_bits(plain, refitted)


@pytest.mark.parametrize(("name", "pattern"), CASES)
def test_the_choice_does_not_depend_on_threads(name, pattern):
    dense = weights(pattern)
    one, _ = prune_model(combination(name, pattern), dense)
    torch.set_num_threads(2)
    two, _ = prune_model(combination(name, pattern), dense)
    assert gone_units(one, pattern) == gone_units(two, pattern)

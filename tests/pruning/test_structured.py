"""Heads and neurons: units by eye, and a smaller transformers model whose logits equal the masked one's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.family import structure_from_config
from sparsehpc.pruning.base import METHODS, DenseSurvey, Site, make_method
from sparsehpc.pruning.shrink import find_smaller
from sparsehpc.pruning.statistics import collector
from sparsehpc.pruning.structured import lowest_units, units_by_layer

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = Calibration(corpus="file:x", windows=1, window_tokens=8)
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 512, (2, 23)))
STRUCTURED = [
    (name, p) for name, kind in METHODS for p in kind.patterns if p in ("heads", "neurons") and name != "flap"
]


def combination(method, pattern, sparsity="0.5", **more):
    needs = METHODS.get(method).needs_calibration(refit=more.get("refit", False))
    return Pruning(method=method, pattern=pattern, sparsity=sparsity, calibration=TEXT if needs else None, **more)


def model_of(config):
    torch.manual_seed(0)
    kwargs = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **kwargs)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)  # zero biases would hide mistakes
    return made


def prune(model, structure, pruning):
    """Prune a whole model section by section; returns masked tensors by name."""
    method = make_method(pruning)
    parameters = structure.prunable(pruning.targets)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    statistics = {}
    if method.wanted_statistics:
        torch.manual_seed(1)
        for p in parameters:
            found = collector(method.wanted_statistics, p.shape[1])
            found.add(torch.randn(99, p.shape[1]), p.name)
            statistics[p.name] = found.result()
    method.survey(parameters, tensors.__getitem__)
    masked = dict(tensors)
    for layer in range(structure.layers):
        sites = [Site(p, i) for i, p in enumerate(parameters) if p.layer == layer]
        weights = {s.parameter.name: tensors[s.parameter.name] for s in sites}
        masked |= {name: r.weight for name, r in method.prune_section(weights, sites, statistics).items()}
    return masked


def shrink(tensors, config, structure):
    """The smaller model's tensors, its config, and why more did not go."""
    layers = ({p.name: tensors[p.name] for p in structure.in_layer(i)} for i in range(structure.layers))
    smaller = find_smaller(structure, config, layers)
    return smaller.cut(tensors), config | smaller.config, smaller.stayed


def logits(model, tensors):
    whole = copy.deepcopy(model)
    missing, unexpected = whole.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    with torch.no_grad():
        return whole(IDS).logits


def opened(tensors, config):
    """The smaller model as plain transformers opens it."""
    smaller = model_of(config)
    smaller.load_state_dict(tensors, strict=False)
    shapes = {name: tuple(p.shape) for name, p in smaller.named_parameters()}
    assert {name: tuple(t.shape) for name, t in tensors.items() if name in shapes} == shapes
    return smaller


def test_units_of_grouped_query_heads_by_eye():
    structure = structure_from_config(FAMILIES["llama"])  # 4 query heads of 16, 2 key/value heads
    units = units_by_layer(structure.prunable(("attention",)), "heads")[0]
    assert units.count == 2
    owners = {part.parameter.projection: (part.axis, part.owner.tolist()) for part in units.parts}
    assert owners["q_proj"] == (0, [0] * 32 + [1] * 32)
    assert owners["k_proj"] == owners["v_proj"] == (0, [0] * 16 + [1] * 16)
    assert owners["o_proj"] == (1, [0] * 32 + [1] * 32)
    assert units.reader.parameter.projection == "o_proj"


def test_units_of_fused_heads_by_eye():
    structure = structure_from_config(FAMILIES["gpt_neox"])  # 4 heads of 16, rows q k v of one head after another
    units = units_by_layer(structure.prunable(("attention",)), "heads")[0]
    assert [(p.parameter.projection, p.axis) for p in units.parts] == [("query_key_value", 0), ("dense", 1)]
    assert units.parts[0].owner.tolist() == [0] * 48 + [1] * 48 + [2] * 48 + [3] * 48
    assert units.parts[1].owner.tolist() == [0] * 16 + [1] * 16 + [2] * 16 + [3] * 16


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "llama"])
@pytest.mark.parametrize(("method", "pattern"), STRUCTURED)
def test_exactly_the_share_of_units_goes_and_nothing_else(family, method, pattern):
    structure = structure_from_config(FAMILIES[family])
    model = model_of(FAMILIES[family])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masked = prune(model, structure, combination(method, pattern))
    gone_everywhere = 0
    for units in units_by_layer(structure.prunable(("attention", "mlp")), pattern):
        dead = []
        for part in units.parts:
            empty = (masked[part.parameter.name] == 0).all(1 - part.axis).numpy()
            dead.append({unit for unit in range(units.count) if empty[part.owner == unit].all()})
            kept = torch.from_numpy(~empty)
            axis = (kept[:, None] if part.axis == 0 else kept[None, :]).expand_as(masked[part.parameter.name])
            assert torch.equal(masked[part.parameter.name][axis], before[part.parameter.name][axis])
        assert all(found == dead[0] for found in dead)
        gone_everywhere += len(dead[0])
    counts = [units.count // 2 for units in units_by_layer(structure.prunable(("attention", "mlp")), pattern)]
    assert gone_everywhere == sum(counts)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("family", ["opt", "opt-untied", "opt-post-norm", "gpt_neox", "llama", "llama-untied"])
@pytest.mark.parametrize("pattern", ["neurons", "heads"])
def test_the_smaller_models_logits_equal_the_masked_ones(family, pattern):
    config = FAMILIES[family]
    structure, model = structure_from_config(config), model_of(config)
    masked = prune(model, structure, combination("magnitude", pattern, "0.3" if pattern == "neurons" else "0.5"))
    tensors, smaller_config, stayed = shrink(masked, config, structure)
    if pattern == "heads" and not family.startswith("llama"):
        assert "cannot leave out heads: its config ties their size to the width" in stayed[0]
        assert smaller_config == config
        assert all(torch.equal(tensor, masked[name]) for name, tensor in tensors.items())
        return
    assert not stayed
    smaller = opened(tensors, smaller_config)
    with torch.no_grad():
        found = smaller(IDS).logits
    # The same sums without their zeros, in another order: float32 rounding of the largest logits.
    assert torch.allclose(found, logits(model, masked), atol=1e-5 * float(found.abs().max()))
    before, after = structure.params_total, structure_from_config(smaller_config).params_total
    zeros = sum(int((masked[p.name] == 0).sum()) for p in structure.prunable(("attention", "mlp")))
    biases = structure.layers * 38 if family.startswith("opt") or family == "gpt_neox" else 0
    assert before - after == zeros + biases  # 38 of 128 neurons a layer, each with a bias in these families


def test_layers_that_lose_more_keep_zeros_up_to_the_largest():
    config = FAMILIES["llama"]
    structure, model = structure_from_config(config), model_of(config)
    masked = {name: p.detach().clone() for name, p in model.named_parameters()}
    for layer, gone in ((0, 100), (1, 60), (2, 128)):
        masked[f"model.layers.{layer}.mlp.down_proj.weight"][:, :gone] = 0
    tensors, smaller_config, stayed = shrink(masked, config, structure)
    assert smaller_config == config | {"intermediate_size": 68}
    (reason,) = stayed
    assert "one number of neurons for all layers, and one layer lost 60 of 128: where more are zero" in reason
    with torch.no_grad():
        found = opened(tensors, smaller_config)(IDS).logits
    assert torch.allclose(found, logits(model, masked), atol=1e-5 * float(found.abs().max()))


def empty(tensors, structure, layers):
    """The same tensors with zeros in every linear and bias of some layers."""
    gone = {p.name for p in structure.parameters if p.layer in layers and p.kind in ("linear", "bias")}
    return {name: torch.zeros_like(t) if name in gone else t for name, t in tensors.items()}


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "llama"])
def test_empty_layers_go_and_leave_the_others_in_order(family):
    config = FAMILIES[family]
    structure, model = structure_from_config(config), model_of(config)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    smaller, smaller_config, stayed = shrink(empty(tensors, structure, [1]), config, structure)
    assert not stayed
    assert smaller_config == config | {"num_hidden_layers": 2}
    shallow = copy.deepcopy(model)
    layers = shallow.get_submodule(structure.layers_path)
    del layers[1]
    shallow.config.num_hidden_layers = 2
    with torch.no_grad():
        assert torch.equal(opened(smaller, smaller_config)(IDS).logits, shallow(IDS, use_cache=False).logits)


def test_what_looks_empty_but_is_not_stays():
    config = FAMILIES["opt"]
    structure, model = structure_from_config(config), model_of(config)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    emptied = empty(tensors, structure, [1])
    emptied["model.decoder.layers.1.fc2.bias"] = tensors["model.decoder.layers.1.fc2.bias"]  # still adds something
    assert shrink(emptied, config, structure)[1] == config
    nothing = empty(tensors, structure, [0, 1, 2])
    _, same, stayed = shrink(nothing, config, structure)
    assert same["num_hidden_layers"] == 3
    assert "every decoder layer is empty, and a model needs one" in stayed
    post_norm = FAMILIES["opt-post-norm"]
    structure, model = structure_from_config(post_norm), model_of(post_norm)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    _, same, stayed = shrink(empty(tensors, structure, [2]), post_norm, structure)
    assert same == post_norm
    assert "an empty layer is not the same as none" in stayed[0]


def test_heads_go_only_to_numbers_that_divide_the_width():
    config = FAMILIES["llama"] | {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}
    structure, model = structure_from_config(config), model_of(config)
    masked = {name: p.detach().clone() for name, p in model.named_parameters()}
    for layer in range(3):
        masked[f"model.layers.{layer}.self_attn.o_proj.weight"][:, :24] = 0  # five of eight heads live
    tensors, smaller_config, stayed = shrink(masked, config, structure)
    assert smaller_config == config
    assert "8 of 8 units of 1 heads stay where 5 would do" in stayed[0]
    for layer in range(3):
        masked[f"model.layers.{layer}.self_attn.o_proj.weight"][:, :40] = 0  # three: one dead head comes along
    tensors, smaller_config, stayed = shrink(masked, config, structure)
    assert smaller_config == config | {"num_attention_heads": 4, "num_key_value_heads": 4}
    assert "4 of 8 units of 1 heads stay where 3 would do" in stayed[0]
    with torch.no_grad():
        found = opened(tensors, smaller_config)(IDS).logits
    assert torch.allclose(found, logits(model, masked), atol=1e-5 * float(found.abs().max()))


def test_a_unit_that_nothing_reads_goes_before_one_that_is_read():
    config = FAMILIES["llama"]
    structure, model = structure_from_config(config), model_of(config)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[:, 77] = 0
    masked = prune(model, structure, combination("wanda", "neurons", "0.01"))
    assert int((masked["model.layers.0.mlp.up_proj.weight"] == 0).all(1).nonzero()) == 77


def test_a_refit_makes_up_for_lost_neurons_in_the_matrix_that_reads_them():
    config = FAMILIES["llama"]
    structure, model = structure_from_config(config), model_of(config)
    plain = prune(model, structure, combination("wanda", "neurons"))
    refitted = prune(model, structure, combination("wanda", "neurons", refit=True))
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(plain[name] == 0, refitted[name] == 0)
    assert not torch.equal(plain[name], refitted[name])
    writer = "model.layers.0.mlp.up_proj.weight"
    # A row that stays whole is its own best fit; 1e-5 is the residual of the conjugate gradients.
    assert torch.allclose(plain[writer], refitted[writer], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sparsity": "1"}, "leaves none of the 2 heads of layer 0"),
        ({"targets": ("mlp",)}, "targets lack attention"),
        ({"allocation": "owl"}, "takes whole heads"),
        ({"sparsity": "0.99"}, None),
        ({"targets": ("attention",)}, None),
    ],
)
def test_what_cannot_be_is_said_at_plan_time(changes, reason):
    structure = structure_from_config(FAMILIES["llama"])
    pruning = Pruning(method="wanda", pattern="heads", calibration=TEXT, **{"sparsity": "0.5", **changes})
    found = METHODS.get("wanda").unsupported(pruning, structure.prunable(pruning.targets))
    assert found is None if reason is None else reason in str(found)


# -- flap and layers ----------------------------------------------------------------------------------------------


def learned(pruning, structure, tensors, variance, mean=None):
    """A method that has seen a dense model whose readers have these input statistics (one value per column)."""
    method = make_method(pruning)
    parameters = structure.prunable(pruning.targets)
    inputs = {
        p.name: {
            "input_variance": variance(p).double(),
            "input_mean": torch.zeros(p.shape[1]).double() if mean is None else mean(p).double(),
        }
        for p in parameters
    }
    method.learn(parameters, tensors.__getitem__, DenseSurvey(inputs, {}))
    return method, parameters


def test_lowest_units_by_eye():
    scores = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 1.0])]
    assert [gone.tolist() for gone in lowest_units(scores, 2)] == [[False, True, False], [True, False]]
    # The last unit of a layer stays; the next lowest elsewhere goes in its place.
    assert [gone.tolist() for gone in lowest_units(scores, 3)] == [[False, True, True], [True, False]]
    with pytest.raises(ValueError, match="1 more units"):
        lowest_units(scores, 4)


def test_flap_ranks_standardised_fluctuations_across_layers():
    structure = structure_from_config(FAMILIES["llama"])
    tensors = {p.name: torch.ones(p.shape) for p in structure.parameters if p.kind == "linear"}
    # Three layers of 128 neurons; layer 1 fluctuates a hundred times as much, which standardising takes out again.
    steps = torch.arange(128.0)
    method, parameters = learned(
        Pruning(method="flap", pattern="neurons", sparsity="0.25", calibration=TEXT),
        structure,
        tensors,
        lambda p: (steps if p.shape[1] == 128 else torch.ones(p.shape[1])) * (100.0 if p.layer == 1 else 1.0),
    )
    for layer in range(3):
        sites = [Site(p, i) for i, p in enumerate(parameters) if p.layer == layer]
        weights = {s.parameter.name: tensors[s.parameter.name] for s in sites}
        results = method.prune_section(weights, sites, {})
        down = results[f"model.layers.{layer}.mlp.down_proj.weight"].weight
        assert (down == 0).all(0).nonzero().view(-1).tolist() == list(range(32))
        assert torch.equal(
            results[f"model.layers.{layer}.self_attn.q_proj.weight"].weight,
            weights[f"model.layers.{layer}.self_attn.q_proj.weight"],
        )


def test_flap_without_fluctuation_is_lossless_because_of_its_bias():
    config = FAMILIES["opt"]
    structure, model = structure_from_config(config), model_of(config)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.weight[:40] = 0  # these neurons are constant: relu of their bias
            layer.fc1.bias[:40] = torch.rand(40) + 0.5
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    biases = {n: t for n, t in tensors.items() if n.endswith("fc1.bias")}
    constant = torch.arange(128) < 40
    method, parameters = learned(
        Pruning(method="flap", pattern="neurons", sparsity="0.3125", calibration=TEXT),
        structure,
        tensors,
        lambda p: torch.where(constant, 0.0, 1.0) if p.shape[1] == 128 else torch.ones(p.shape[1]),
        lambda p: (
            biases[p.name.replace("fc2.weight", "fc1.bias")].relu()
            if p.projection == "fc2"
            else torch.zeros(p.shape[1])
        ),
    )
    masked = dict(tensors)
    for layer in range(structure.layers):
        sites = [Site(p, i) for i, p in enumerate(parameters) if p.layer == layer]
        weights = {s.parameter.name: tensors[s.parameter.name] for s in sites}
        masked |= {name: r.weight for name, r in method.prune_section(weights, sites, {}).items()}
    assert all(
        (masked[f"model.decoder.layers.{i}.fc2.weight"] == 0).all(0).tolist() == constant.tolist() for i in range(3)
    )
    lost = logits(model, masked)
    for name, change in method.bias_changes.items():
        masked[name.replace("weight", "bias")] = masked[name.replace("weight", "bias")] + change
    dense = logits(model, tensors)
    scale = float(dense.abs().max())
    assert torch.allclose(logits(model, masked), dense, atol=1e-5 * scale)
    assert not torch.allclose(lost, dense, atol=1e-2 * scale)


def test_block_influence_takes_the_least_first_and_ties_by_layer():
    structure = structure_from_config(FAMILIES["llama"])
    method = make_method(Pruning(method="block-influence", pattern="layers", sparsity="0.67", calibration=TEXT))
    parameters = structure.prunable(("attention", "mlp"))
    method.learn(parameters, dict.__getitem__, DenseSurvey({}, {0: 0.4, 1: 0.1, 2: 0.4}))
    assert {name.split(".")[2] for name in method.bias_changes} == {"0", "1"}
    assert set(method.bias_changes.values()) == {None}
    for layer in range(3):
        sites = [Site(p, i) for i, p in enumerate(parameters) if p.layer == layer]
        weights = {s.parameter.name: torch.ones(s.parameter.shape) for s in sites}
        results = method.prune_section(weights, sites, {})
        assert all(bool((r.weight == (layer == 2)).all()) for r in results.values())


@pytest.mark.parametrize(
    ("method", "pattern", "sparsity", "reason"),
    [
        ("flap", "heads", "0.7", "4 of 6 heads would go"),
        ("flap", "heads", "0.5", None),
        ("block-influence", "layers", "1", "leaves none of the 3 layers of the model"),
        ("block-influence", "layers", "0.9", None),
    ],
)
def test_units_that_would_leave_nothing_are_refused(method, pattern, sparsity, reason):
    structure = structure_from_config(FAMILIES["llama"])
    pruning = Pruning(method=method, pattern=pattern, sparsity=sparsity, calibration=TEXT)
    found = METHODS.get(method).unsupported(pruning, structure.prunable(pruning.targets))
    assert found is None if reason is None else reason in str(found)

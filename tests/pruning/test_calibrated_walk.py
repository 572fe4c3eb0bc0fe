"""Calibrated methods through the layer walk equal the same methods written out on a whole model."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracles import published_pruning as published
from oracles.true_sequential import prune_in_turn
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from sparsehpc.compress import Compression
from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Calibration, Cell, Pruning, Windows
from sparsehpc.models.structure import Parameter
from sparsehpc.pipeline import run_cells
from sparsehpc.pruning.allocation import owl_budgets
from sparsehpc.pruning.base import METHODS, DenseSurvey, Site, make_method
from sparsehpc.pruning.statistics import collector
from sparsehpc.text.windows import TokenWindows

CALIBRATION = Calibration(corpus="python-docs", windows=3, window_tokens=40)


def windows(lengths, seed):
    generator = np.random.default_rng(seed)
    return TokenWindows(
        ids=tuple(generator.integers(0, 512, n) for n in lengths),
        text_bytes=tuple(3 * n for n in lengths),
        every_position=True,
        starts=tuple(range(len(lengths))),
        source="random tokens",
    )


EVALUATION, TEXT = windows((9, 14), 0), windows((40, 33, 40), 1)


def walk(pruning, snapshot, tmp_path):
    """Zeros by tensor and the summed NLL of the variant, from the pipeline."""
    cell = Cell(
        model="m", evaluation=Windows(corpus="samples", windows=2, window_tokens=64), variant="masked", pruning=pruning
    )
    found = {}
    run_cells(
        [cell],
        snapshot,
        EVALUATION,
        {CALIBRATION: TEXT},
        None,
        scratch=tmp_path,
        memory_bytes=None,
        finished=lambda done, result: found.update(result=result),
    )
    result = found["result"]
    if isinstance(result, Exception):
        raise result
    rows = result.measurements
    zeros = {
        r.subject: round(r.numerator)
        for r in rows
        if (r.scope, r.metric) == ("tensor", "params_nonzero") and r.convention in ("", "unique")
    }
    nll = sum(r.numerator for r in rows if (r.scope, r.metric) == ("window", "nll"))
    return zeros, nll


def influences(model, structure):
    """1 - mean cosine of every layer's input and output, over all calibration tokens."""
    pairs = {layer: [] for layer in range(structure.layers)}
    handles = [
        model.get_submodule(f"{structure.layers_path}.{layer}").register_forward_hook(
            lambda module, args, output, layer=layer: pairs[layer].append(
                (args[0][0], (output[0] if isinstance(output, tuple) else output).reshape(args[0][0].shape))
            )
        )
        for layer in range(structure.layers)
    ]
    for ids in TEXT.ids:
        model(torch.from_numpy(ids)[None])
    for handle in handles:
        handle.remove()
    found = {}
    for layer, both in pairs.items():
        before, after = (torch.cat([pair[side] for pair in both]).double() for side in (0, 1))
        found[layer] = 1 - float(((before * after).sum(1) / before.norm(dim=1) / after.norm(dim=1)).mean())
    return found


def whole_model(pruning, snapshot):
    """The same, plainly: a whole model, hooks on its linears, layer after layer."""
    model = AutoModelForCausalLM.from_pretrained(snapshot.path).float().eval()
    structure = snapshot.structure
    parameters = structure.prunable(pruning.targets)
    state = dict(model.named_parameters())
    method = make_method(pruning)

    def observe(names, statistics):
        found = {name: collector(statistics, state[name].shape[1]) for name in names}
        handles = [
            model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
                lambda module, args, name=name: found[name].add(args[0].reshape(-1, args[0].shape[-1]), name)
            )
            for name in names
        ]
        for ids in TEXT.ids:
            model(torch.from_numpy(ids)[None])
        for handle in handles:
            handle.remove()
        return {name: collected.result() for name, collected in found.items()}

    with torch.no_grad():
        if pruning.allocation != "default":
            dense = observe([p.name for p in parameters], ("input_norm",))
        if pruning.allocation == "global":
            scores = {p.name: state[p.name].abs() * dense[p.name]["input_norm"].float() for p in parameters}
            flat = torch.cat([score.flatten() for score in scores.values()])
            cut = flat.sort().values[len(flat) // 2 - 1]
            method.budgets = {
                name: Fraction(int((score <= cut).sum()), score.numel()) for name, score in scores.items()
            }
        if pruning.allocation == "owl":
            ratios = {}
            for layer in range(structure.layers):
                scores = torch.cat(
                    [
                        (state[p.name].abs() * dense[p.name]["input_norm"].float()).flatten()
                        for p in parameters
                        if p.layer == layer
                    ]
                )
                ratios[layer] = float((scores > 5 * scores.double().mean()).double().mean())
            method.budgets = owl_budgets(parameters, ratios, Fraction(pruning.fraction))
        if pruning.allocation == "default" and method.dense_statistics is not None:
            inputs = observe([p.name for p in parameters], method.dense_statistics)
            method.learn(parameters, lambda name: state[name].data, DenseSurvey(inputs, influences(model, structure)))
        method.survey(parameters, lambda name: state[name].data)
        for layer in range(structure.layers):
            names = [p.name for p in parameters if p.layer == layer]
            statistics = observe(names, method.wanted_statistics) if method.wanted_statistics else {}
            sites = [Site(p, index) for index, p in enumerate(parameters) if p.layer == layer]
            weights = {site.parameter.name: state[site.parameter.name].data for site in sites}
            for name, result in method.prune_section(weights, sites, statistics).items():
                state[name].data = result.weight
                module = model.get_submodule(name.removesuffix(".weight"))
                if name in method.bias_changes:
                    old, change = module.bias, method.bias_changes[name]
                    new = None if change is None else change if old is None else old + change
                    module.bias = None if new is None else torch.nn.Parameter(new)
        nll = 0.0
        for ids in EVALUATION.ids:
            logits = model(torch.from_numpy(ids)[None]).logits[0, :-1].double()
            nll += float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:], reduction="sum"))
    return {p.name: int((state[p.name] != 0).sum()) for p in parameters}, nll


#: One family covers every method; the others show that the walk feeds them the same.
SPARSEGPT, OWL = {"method": "sparsegpt"}, {"method": "wanda", "allocation": "owl"}
FLAP, LAYERS = {"method": "flap", "pattern": "neurons"}, {"method": "block-influence", "pattern": "layers"}
CASES = [
    *(
        ("llama", changes)
        for changes in (
            SPARSEGPT,
            OWL,
            {"method": "wanda"},
            {"method": "wanda", "pattern": "2:4"},
            {"method": "wanda", "refit": True},
            {"method": "wanda", "allocation": "global"},
            {"method": "ria"},
            {"method": "sparsegpt", "pattern": "4:8", "refit": True},
            {"method": "admm"},
            {"method": "magnitude", "refit": True},
            {"method": "magnitude", "pattern": "heads"},
            {"method": "wanda", "pattern": "neurons"},
            {"method": "flap", "pattern": "heads"},
            {"method": "flap", "pattern": "neurons"},
            {"method": "block-influence", "pattern": "layers"},
        )
    ),
    *((family, changes) for family in ("opt", "gpt_neox") for changes in (SPARSEGPT, OWL, FLAP, LAYERS)),
]


@pytest.mark.parametrize(
    ("family", "changes"), CASES, ids=[f"{family}-{'-'.join(map(str, c.values()))}" for family, c in CASES]
)
def test_the_walk_equals_the_whole_model(family, changes, tiny_snapshot, tmp_path):
    changes = {"pattern": "unstructured", **changes}
    pruning = Pruning(sparsity="0.5", calibration=CALIBRATION, **changes)
    snapshot = tiny_snapshot(FAMILIES[family])
    nonzero, nll = walk(pruning, snapshot, tmp_path)
    expected_nonzero, expected_nll = whole_model(pruning, snapshot)
    assert {name: nonzero[name] for name in expected_nonzero} == expected_nonzero
    # The walk runs the same kernels on the same windows; a mask bit may still flip where float32 products differ.
    assert nll == pytest.approx(expected_nll, rel=1e-5)


def test_raised_damping_is_in_the_cells_row(tiny_snapshot, tmp_path):
    # Without damping a Hessian of fewer tokens than features has no Cholesky factor.
    pruning = Pruning(
        method="sparsegpt",
        pattern="unstructured",
        sparsity="0.5",
        calibration=CALIBRATION,
        options=(("damping", 0.0),),
    )
    cell = Cell(
        model="m", evaluation=Windows(corpus="samples", windows=2, window_tokens=64), variant="masked", pruning=pruning
    )
    found = []
    run_cells(
        [cell],
        tiny_snapshot(FAMILIES["llama"]),
        EVALUATION,
        {CALIBRATION: windows((20,), 1)},
        None,
        scratch=tmp_path,
        memory_bytes=None,
        finished=lambda done, result: found.append(result),
    )
    notes = json.loads(found[0].row["notes"])["method"]
    down = notes["model.layers.0.mlp.down_proj.weight"]  # 128 features, 20 tokens
    assert down["damping_raised"] >= 1
    assert down["damping"] == pytest.approx(1e-4 * 10 ** (down["damping_raised"] - 1))
    assert set(notes) <= {p.name for p in tiny_snapshot(FAMILIES["llama"]).structure.prunable(("attention", "mlp"))}


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gpt_neox-sequential"])
def test_a_layer_that_went_is_a_layer_left_out(family, tiny_snapshot, tmp_path):
    """Its weights are zero and its biases gone, which is the same as a model with one layer less."""
    snapshot = tiny_snapshot(FAMILIES[family])
    pruning = Pruning(method="block-influence", pattern="layers", sparsity="0.34", calibration=CALIBRATION)
    _, nll = walk(pruning, snapshot, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(snapshot.path).float().eval()
    with torch.no_grad():
        influence = influences(model, snapshot.structure)
        del model.get_submodule(snapshot.structure.layers_path)[min(influence, key=influence.get)]
        expected = 0.0
        for ids in EVALUATION.ids:
            logits = model(torch.from_numpy(ids)[None], use_cache=False).logits[0, :-1].double()
            expected += float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:], reduction="sum"))
    assert nll == pytest.approx(expected, rel=1e-6)


def test_a_post_norm_decoder_has_no_layer_to_leave_out(tiny_snapshot):
    snapshot = tiny_snapshot(FAMILIES["opt-post-norm"])
    pruning = Pruning(method="block-influence", pattern="layers", sparsity="0.34", calibration=CALIBRATION)
    with pytest.raises(UserError, match="an empty layer is not the same as none"):
        Compression(snapshot, pruning, "masked", calibration=TEXT)


def test_shipped_methods_fill_their_page():
    for name, kind in METHODS:
        assert min(len(kind.cost), len(kind.advice), len(kind.differs)) > 5, name


def test_calibrated_methods_all_learn():
    learning = {name for name, kind in METHODS if kind.needs_calibration()}
    assert learning == {"admm", "block-influence", "flap", "ria", "sparsegpt", "wanda"}


@pytest.mark.parametrize(
    ("method", "pattern", "sparsity", "removed"),
    [
        # Half of 128 neurons in three layers, each a row of gate and up and a column of down.
        ("flap", "neurons", "0.5", 3 * 64 * 3 * 64),
        ("magnitude", "neurons", "0.5", 3 * 64 * 3 * 64),
        # One of two key/value heads of 16 in each layer, with the two query heads that share it.
        ("wanda", "heads", "0.5", 3 * (2 * 32 + 2 * 16) * 64),
        # One layer of three: query, key, value, output and three matrices of the MLP.
        ("block-influence", "layers", "0.34", (64 + 32 + 32 + 64 + 3 * 128) * 64),
    ],
)
def test_a_compact_structured_model_is_smaller_and_says_the_same(
    method, pattern, sparsity, removed, tiny_snapshot, tmp_path
):
    needs = METHODS.get(method).needs_calibration()
    pruning = Pruning(method=method, pattern=pattern, sparsity=sparsity, calibration=CALIBRATION if needs else None)
    windows_of = Windows(corpus="samples", windows=2, window_tokens=64)
    cells = [Cell(model="m", evaluation=windows_of, variant=name, pruning=pruning) for name in ("masked", "compact")]
    found, snapshot = {}, tiny_snapshot(FAMILIES["llama"])
    prompts = np.random.default_rng(2).integers(0, 512, (2, 5))
    run_cells(
        cells,
        snapshot,
        EVALUATION,
        {CALIBRATION: TEXT},
        prompts,
        scratch=tmp_path,
        memory_bytes=None,
        finished=lambda done, result: found.update({done.variant: result}),
    )

    def total(variant, metric, scope="model", convention="unique"):
        rows = [
            r for r in found[variant].measurements if (r.metric, r.scope, r.convention) == (metric, scope, convention)
        ]
        assert rows
        return sum(r.numerator for r in rows)

    linears = snapshot.structure.prunable(("attention", "mlp"))
    flags = sum(sum(p.shape) for p in linears)  # which rows and columns are there
    assert total("masked", "bytes_total") - total("compact", "bytes_total") == 4 * removed - flags
    assert total("masked", "flops_executed") - total("compact", "flops_executed") == 2 * removed
    for variant in ("masked", "compact"):  # what was reached, whatever share of units was asked for
        (reached,) = [
            r for r in found[variant].measurements
            if (r.metric, r.scope, r.convention) == ("sparsity_prunable", "model", "unique")
        ]  # fmt: skip
        assert (reached.numerator, reached.denominator) == (removed, sum(p.numel for p in linears))
    nll = [total(name, "nll", "window", "") for name in ("masked", "compact")]
    assert nll[0] == pytest.approx(nll[1], rel=1e-5)  # the same sums in another order
    biases = [r for r in found["masked"].measurements if r.subject == "model.layers.0.mlp.down_proj.bias"]
    assert bool(biases) == (method == "flap")


# -- statistics recomputed inside a layer -------------------------------------------------------------------------


def stored_weights(pruning, snapshot):
    """Pruned weights by name, from the walk that writes a model."""
    sections = Compression(snapshot, pruning, "masked", calibration=TEXT).sections()
    return {name: stored.decode() for section in sections for name, stored in section.stored.items()}


def in_turn(pruning, snapshot, prune):
    """The same from a whole model and the plain restatement; and the model's NLL on the evaluation text."""
    model = AutoModelForCausalLM.from_pretrained(snapshot.path).float().eval()
    structure = snapshot.structure
    texts = [torch.from_numpy(ids) for ids in TEXT.ids]
    names = {layer: [p.name for p in structure.prunable(pruning.targets) if p.layer == layer] for layer in range(3)}
    nll = 0.0
    with torch.no_grad():
        for layer in range(structure.layers):
            prune_in_turn(model, names[layer], structure.model_type, texts, prune)
        for ids in EVALUATION.ids:
            logits = model(torch.from_numpy(ids)[None]).logits[0, :-1].double()
            nll += float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:], reduction="sum"))
    state = dict(model.named_parameters())
    return {name: state[name].data for layer in names.values() for name in layer}, nll


def ours(pruning):
    """One weight through the method as it is, from all its inputs at once."""
    method = make_method(pruning)

    def prune(name, weight, inputs):
        found = collector(method.wanted_statistics, inputs.shape[1])
        found.add(inputs, name)
        return method.apply(
            weight, Site(Parameter(name, tuple(weight.shape), "mlp", "linear", 0, "x"), 0), found.result()
        ).weight

    return prune


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])  # its head tied to the embedding, and one of its own
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_head_is_pruned_by_what_reaches_it_through_the_pruned_layers(method, family, tiny_snapshot):
    pruning = Pruning(
        method=method, pattern="unstructured", sparsity="0.5", targets=("attention", "mlp", "lm_head"),
        calibration=CALIBRATION,
    )  # fmt: skip
    snapshot = tiny_snapshot(FAMILIES[family])
    found = stored_weights(pruning, snapshot)
    (head,) = (p.name for p in snapshot.structure.prunable(("lm_head",)))
    model = AutoModelForCausalLM.from_pretrained(snapshot.path).float().eval()
    inputs, state = [], dict(model.named_parameters())
    dense = model.get_output_embeddings().weight.data.clone()
    for name, weight in found.items():
        if name != head:
            state[name].data = weight
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: inputs.append(args[0][0]))
    with torch.no_grad():
        for ids in TEXT.ids:
            model(torch.from_numpy(ids)[None])
    expected = ours(pruning)(head, dense, torch.cat(inputs))
    assert torch.equal(found[head] == 0, expected == 0)
    assert torch.allclose(found[head], expected, atol=1e-5)


IN_TURN = [
    *((family, {"method": "wanda"}) for family in ("opt", "opt-post-norm", "gpt_neox", "gpt_neox-sequential", "llama")),
    *((family, {"method": "sparsegpt"}) for family in ("opt", "gpt_neox", "llama")),
    ("llama", {"method": "ria", "pattern": "2:4"}),
    ("llama", {"method": "wanda", "refit": True}),
    ("opt", {"method": "magnitude-rowwise", "refit": True}),
    ("llama", {"method": "wanda", "targets": ("mlp",)}),
]


@pytest.mark.parametrize(
    ("family", "changes"), IN_TURN, ids=[f"{family}-{'-'.join(map(str, c.values()))}" for family, c in IN_TURN]
)
def test_true_sequential_equals_the_plain_restatement(family, changes, tiny_snapshot, tmp_path):
    changes = {"pattern": "unstructured", **changes}
    pruning = Pruning(sparsity="0.5", calibration=CALIBRATION, true_sequential=True, **changes)
    snapshot = tiny_snapshot(FAMILIES[family])
    published_code = changes == {"method": "wanda", "pattern": "unstructured"}
    prune = (lambda name, weight, x: published.wanda(weight, [x.double()], 0.5)) if published_code else ours(pruning)
    expected, expected_nll = in_turn(pruning, snapshot, prune)
    found = stored_weights(pruning, snapshot)
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(found[name] == 0, weight == 0), name
        # The same products, summed over one window at a time instead of all.
        assert torch.allclose(found[name], weight, atol=1e-4), name
    nonzero, nll = walk(pruning, snapshot, tmp_path)
    assert {name: nonzero[name] for name in expected} == {name: int((w != 0).sum()) for name, w in expected.items()}
    assert nll == pytest.approx(expected_nll, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "same"),
    [
        ("opt", {"q_proj", "k_proj", "v_proj"}),
        ("llama", {"q_proj", "k_proj", "v_proj"}),
        ("gpt_neox-sequential", {"query_key_value"}),
        # With a parallel residual the MLP reads what enters the layer: pruned attention does not reach it.
        ("gpt_neox", {"query_key_value", "dense_h_to_4h"}),
    ],
)
def test_true_sequential_moves_what_reads_pruned_linears_and_nothing_else(family, same, tiny_snapshot):
    once = Pruning(method="sparsegpt", pattern="unstructured", sparsity="0.5", calibration=CALIBRATION)
    snapshot = tiny_snapshot(FAMILIES[family])
    before = stored_weights(once, snapshot)
    after = stored_weights(dataclasses.replace(once, true_sequential=True), snapshot)
    first = {p.name: p.projection for p in snapshot.structure.prunable(once.targets) if p.layer == 0}
    assert {projection for name, projection in first.items() if torch.equal(before[name], after[name])} == same


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "magnitude"}, "magnitude uses no statistics"),
        ({"method": "random"}, "random uses no statistics"),
        # OWL's norms are those of the dense model.
        ({"method": "magnitude-layerwise", "allocation": "owl"}, "magnitude-layerwise uses no statistics"),
        ({"method": "wanda", "pattern": "neurons"}, "pattern neurons decides"),
        ({"method": "flap", "pattern": "heads"}, "pattern heads decides"),
        ({"method": "block-influence", "pattern": "layers"}, "pattern layers decides"),
    ],
)
def test_true_sequential_is_refused_where_there_is_nothing_to_recompute(changes, reason, tiny_snapshot):
    pruning = Pruning(
        sparsity="0.4", calibration=CALIBRATION, true_sequential=True, **{"pattern": "unstructured", **changes}
    )
    snapshot = tiny_snapshot(FAMILIES["llama"])
    found = METHODS.get(pruning.method).unsupported(pruning, snapshot.structure.prunable(pruning.targets))
    assert found.startswith(reason)
    with pytest.raises(UserError, match=reason):
        Compression(snapshot, pruning, "masked", calibration=TEXT)

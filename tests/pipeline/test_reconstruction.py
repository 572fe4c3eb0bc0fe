"""Output errors of pruned linears: by hand, and against the whole model in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, LLAMA
from transformers import AutoModelForCausalLM

from sparsehpc import reconstruction
from sparsehpc.core.spec import Cell, Pruning, Windows
from sparsehpc.metrics.base import METRICS, ModelView, TensorView
from sparsehpc.models.stream import LayerWalk
from sparsehpc.models.structure import Parameter
from sparsehpc.pipeline import run_cells
from sparsehpc.reconstruction import Sample, output_errors, sampled
from sparsehpc.text.windows import TokenWindows

EVALUATION = Windows(corpus="samples", windows=4, window_tokens=64)
LENGTHS = (5, 17, 30, 17)
TEXT = TokenWindows(
    ids=tuple(np.random.default_rng(0).integers(0, 512, n) for n in LENGTHS),
    text_bytes=tuple(3 * n for n in LENGTHS),
    every_position=True,
    starts=(0, 1, 2, 3),
    source="random tokens",
)


def test_by_eye():
    sample = Sample(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0]]))
    used = torch.tensor([[3.0, 0.0]])
    # Outputs 5 and 1; without the second weight 3 and 0.
    assert sample.error(used) == (4 + 1, 25 + 1)
    # A bias of 1 makes 4 and 1 of them.
    assert sample.error(used, torch.ones(1)) == (1, 26)
    assert output_errors({"w": sample}, {"w": used}, {"w": torch.ones(1)}) == {"w": (1, 26)}
    assert output_errors({"w": sample}, {"w": used}, {"w": None}) == {}
    assert output_errors({}, {"w": used}, {}) == {}


def errors(result, scope="tensor"):
    rows = [r for r in result.measurements if (r.metric, r.scope) == ("reconstruction_error", scope)]
    return {row.subject: (row.numerator, row.denominator) for row in rows}


def hooked(model, names, positions):
    """Inputs of linears of the whole model, by weight name, at some positions of the text."""
    found = {name: [] for name in names}
    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda module, inputs, name=name: found[name].append(inputs[0].flatten(0, -2))
        )
        for name in names
    ]
    for ids in TEXT.ids:
        model(input_ids=torch.from_numpy(ids)[None])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts)[positions] for name, parts in found.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_errors_are_those_of_the_whole_model(family, tiny_snapshot, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "SAMPLE_TOKENS", 23)  # a third of the 69 tokens: the middle one of each three
    snapshot = tiny_snapshot(FAMILIES[family])
    pruning = Pruning(method="magnitude", pattern="unstructured", sparsity="0.5")
    dense = Cell(model="m", evaluation=EVALUATION)
    masked, lossy = (
        Cell(model="m", evaluation=EVALUATION, variant=variant, pruning=pruning)
        for variant in ("masked", "bitmap-int8")
    )
    results = {}
    run_cells(
        [dense, masked, lossy], snapshot, TEXT, {}, None, scratch=tmp_path, finished=lambda c, r: results.update({c: r})
    )
    assert errors(results[dense]) == {}
    found = errors(results[masked])
    prunable = [p.name for p in snapshot.structure.prunable(("attention", "mlp"))]
    assert sorted(found) == sorted(prunable)
    model = AutoModelForCausalLM.from_pretrained(snapshot.path, dtype=torch.float32).eval()
    with torch.inference_mode():
        inputs = hooked(model, prunable, slice(1, None, 3))
        weights = {name: model.get_parameter(name).double() for name in prunable}
        # The smallest half of all magnitudes goes; this tiny model has no ties there.
        cut = torch.cat([w.abs().flatten() for w in weights.values()]).sort().values
        cut = cut[len(cut) // 2]
        for name, weight in weights.items():
            x = inputs[name].double()
            wanted = x @ weight.T
            lost = wanted - x @ torch.where(weight.abs() < cut, 0.0, weight).T
            # Products in float32 of inputs that went through float32 layers in another order.
            assert found[name][0] == pytest.approx(float(lost.square().sum()), rel=1e-4)
            assert found[name][1] == pytest.approx(float(wanted.square().sum()), rel=1e-4)
    # What a lossy format rounds away is in its error.
    own = errors(results[lossy])
    assert all(own[name] != found[name] for name in prunable)
    assert all(own[name][1] == found[name][1] for name in prunable)
    # A layer's error is that of its linears together.
    for layer, (error, squares) in errors_by_layer(results[masked]).items():
        mine = [found[p.name] for p in snapshot.structure.prunable(("attention", "mlp")) if p.layer == int(layer)]
        assert error == pytest.approx(sum(e for e, _ in mine))
        assert squares == pytest.approx(sum(s for _, s in mine))


def errors_by_layer(result):
    found: dict[str, tuple[float, float]] = {}
    for row in result.measurements:
        if (row.metric, row.scope) == ("reconstruction_error", "layer"):
            error, squares = found.get(row.subject, (0.0, 0.0))
            found[row.subject] = (error + row.numerator, squares + row.denominator)
    return found


def test_samples_are_spread(tiny_snapshot, monkeypatch):
    """One of every 32 of 2,000 tokens, from the 17th on, though they come a hundred at a time."""
    snapshot = tiny_snapshot(LLAMA)
    monkeypatch.setattr(reconstruction, "Sample", lambda inputs, weight: inputs)
    with torch.inference_mode():
        walk = LayerWalk(snapshot)
        walk.load_outside()
        weights = {name: tensor for name, tensor in walk.load(0).items() if name.endswith("proj.weight")}
        all_inputs = {name: [] for name in weights}
        with sampled(walk, weights, 2000) as taken:
            for start in range(0, 2000, 100):
                hidden, call = walk.embed(torch.arange(start, start + 100)[None] % 512)
                walk.run(0, hidden, call)
        with walk.observing(weights, lambda name, x: all_inputs[name].append(x[0])):
            for start in range(0, 2000, 100):
                hidden, call = walk.embed(torch.arange(start, start + 100)[None] % 512)
                walk.run(0, hidden, call)
    for name, found in all_inputs.items():
        assert torch.equal(taken[name], torch.cat(found)[16::32])
        assert len(taken[name]) == 62


def test_a_linear_that_gives_nothing_has_no_error():
    parameter = Parameter("w", (1, 2), "mlp", "linear", 0, "fc1")
    view = TensorView(parameter, True, 2, 1, {"values": 8}, 4, (0.0, 0.0))
    cell = Cell(model="m", evaluation=EVALUATION)
    assert list(METRICS.get("reconstruction")().model(ModelView(cell, None, "float32", 0, [view]))) == []

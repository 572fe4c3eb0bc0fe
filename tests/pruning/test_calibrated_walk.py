"""Calibrated methods through the layer walk equal the same methods written out on a whole model."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from sparsehpc.core.spec import Calibration, Cell, Pruning, Windows
from sparsehpc.pipeline import run_cells
from sparsehpc.pruning.allocation import owl_budgets
from sparsehpc.pruning.base import METHODS, Site, make_method
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
        method.survey(parameters, lambda name: state[name].data)
        for layer in range(structure.layers):
            names = [p.name for p in parameters if p.layer == layer]
            statistics = observe(names, method.wanted_statistics) if method.wanted_statistics else {}
            for index, p in enumerate(parameters):
                if p.layer == layer:
                    state[p.name].data = method.apply(
                        state[p.name].data, Site(p, index), statistics.get(p.name, {})
                    ).weight
        nll = 0.0
        for ids in EVALUATION.ids:
            logits = model(torch.from_numpy(ids)[None]).logits[0, :-1].double()
            nll += float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:], reduction="sum"))
    return {p.name: int((state[p.name] != 0).sum()) for p in parameters}, nll


#: One family covers every method; the others show that the walk feeds them the same.
SPARSEGPT, OWL = {"method": "sparsegpt"}, {"method": "wanda", "allocation": "owl"}
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
        )
    ),
    *((family, changes) for family in ("opt", "gpt_neox") for changes in (SPARSEGPT, OWL)),
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


def test_shipped_methods_fill_their_page():
    for name, kind in METHODS:
        assert min(len(kind.cost), len(kind.advice), len(kind.differs)) > 5, name


def test_calibrated_methods_all_learn():
    assert {name for name, kind in METHODS if kind.statistics} == {"admm", "ria", "sparsegpt", "wanda"}

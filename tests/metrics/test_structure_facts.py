"""opt-125m's shape at 30 %: every figure of the old study, and what it should have been, exactly."""

from __future__ import annotations

from collections import defaultdict

import pytest

from sparsehpc.core.spec import Cell, Pruning, Windows
from sparsehpc.metrics.base import ModelView, TensorView
from sparsehpc.metrics.measures.structure import Structure
from sparsehpc.models.snapshot import structure_of

ZEROS = 25_480_396
PRUNABLE = 84_934_656
PARAMS = 125_239_296
MIB = 2**20


def opt_at_30_percent(variant: str) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Sums by (scope and subject, convention, metric) of a model whose zeros are spread as evenly as counts allow."""
    structure = structure_of("facebook/opt-125m")
    cell = Cell(
        model="facebook/opt-125m",
        evaluation=Windows(corpus="samples", windows=40, window_tokens=512),
        variant=variant,
        pruning=Pruning(method="magnitude", pattern="unstructured", sparsity="0.3"),
    )
    prunable = {p.name for p in structure.prunable(("attention", "mlp"))}
    left, views = ZEROS, []
    remaining = PRUNABLE
    for p in structure.parameters:
        zeros = 0
        if p.name in prunable:
            zeros = left * p.numel // remaining
            left, remaining = left - zeros, remaining - p.numel
        nonzeros = p.numel - zeros
        csr = variant == "csr" and p.name in prunable
        size = {"values": 4 * nonzeros, "indices": 4 * nonzeros, "offsets": 4 * (p.shape[0] + 1)} if csr else None
        views.append(
            TensorView(
                parameter=p,
                prunable=p.name in prunable,
                numel=p.numel,
                nonzeros=nonzeros,
                component_bytes=size or {"weight": 4 * p.numel},
                flops_executed=0 if p.kind != "linear" else 2 * nonzeros if csr else 2 * p.numel,
            )
        )
    assert left == 0
    sums: dict[tuple[str, str, str], tuple[float, float]] = defaultdict(lambda: (0.0, 1.0))
    for row in Structure().model(ModelView(cell, structure, "float16", 0, views)):
        key = (row.scope if row.scope == "model" else f"{row.scope}:{row.subject}", row.convention, row.metric)
        sums[key] = (sums[key][0] + row.numerator, row.denominator)
    return sums


@pytest.fixture(scope="module")
def masked():
    return opt_at_30_percent("masked")


@pytest.fixture(scope="module")
def csr():
    return opt_at_30_percent("csr")


def test_unique_counts(masked):
    assert masked["model", "unique", "params_total"][0] == PARAMS
    assert masked["model", "unique", "sparsity_prunable"] == (ZEROS, PRUNABLE)
    assert masked["model", "unique", "sparsity"] == (ZEROS, PARAMS)
    assert pytest.approx(0.20345, abs=5e-6) == ZEROS / PARAMS
    assert masked["model", "unique", "bytes_total"][0] / MIB == pytest.approx(477.75, abs=0.005)
    assert masked["model", "unique", "flops_dense"][0] == 247_087_104
    assert masked["model", "unique", "flops_theoretical"][0] == 196_126_312
    assert masked["model", "unique", "flops_executed"][0] == 247_087_104
    assert masked["model", "", "attention_flops_per_context_token"][0] == 36_864


def test_study_groups(masked):
    groups = {
        "attention": 28_348_416,
        "mlp": 56_669_184,
        "embedding": 40_183_296,
        "lm_head": 38_608_896,
        "norm": 38_400,
    }
    found = {name: masked[f"group:{name}", "study", "params_total"][0] for name in groups}
    assert found == groups
    assert sum(found.values()) == 163_848_192
    assert masked["group:mlp", "study", "param_fraction"] == (56_669_184, 163_848_192)


def test_study_flops(masked, csr):
    assert masked["model", "study", "flops_executed"][0] == 327_453_696
    assert csr["model", "study", "flops_executed"][0] == 276_492_904


def test_study_loses_the_csr_weights(masked, csr):
    assert csr["model", "study", "bytes_total"][0] / MIB == pytest.approx(153.75, abs=0.005)
    assert csr["model", "study", "bytes_total"][0] == 4 * (PARAMS - PRUNABLE)
    assert csr["model", "study", "sparsity"][0] == 0
    assert masked["model", "study", "bytes_total"][0] == 4 * PARAMS


def test_honest_csr_is_larger_than_dense(csr):
    offsets = 4 * sum(p.shape[0] + 1 for p in structure_of("facebook/opt-125m").prunable(("attention", "mlp")))
    expected = 4 * (PARAMS - PRUNABLE) + 8 * (PRUNABLE - ZEROS) + offsets
    assert csr["model", "unique", "bytes_total"][0] == expected
    assert csr["model", "unique", "bytes_ratio"] == (expected, 4 * PARAMS)
    assert expected > 4 * PARAMS


def test_scopes_add_up(masked, csr):
    for sums in (masked, csr):
        for convention in ("unique", "study"):
            for metric in ("flops_dense", "flops_theoretical", "flops_executed"):
                for scope in ("group", "tensor"):
                    total = sum(
                        value[0]
                        for (subject, c, m), value in sums.items()
                        if subject.startswith(scope + ":") and c == convention and m == metric
                    )
                    assert total == sums["model", convention, metric][0]

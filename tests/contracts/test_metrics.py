"""What every metric must keep, whatever it measures: a new file in ``measures`` is tested at once."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sparsehpc.core.schema import CONVENTIONS, GROUPS, REDUCTIONS, SCOPES, Measurement
from sparsehpc.core.spec import Cell, Pruning, Windows
from sparsehpc.metrics.base import METRICS, ModelView, TensorView, WindowView
from sparsehpc.metrics.positions import dense_positions, positions
from sparsehpc.models.snapshot import structure_of

KINDS = [kind for _, kind in METRICS]
UNITS = {"1", "bits", "bytes", "flops", "nats", "s", "tokens", "weights"}
CELL = Cell(
    model="facebook/opt-125m",
    evaluation=Windows(corpus="samples", windows=40, window_tokens=512),
    variant="masked",
    pruning=Pruning(method="magnitude", pattern="unstructured", sparsity="0.3"),
)
VOCABULARY = 13


def window(seed: int | None, *, length: int = 9, every_position: bool = True) -> WindowView:
    """A window whose cell is the dense model itself (no seed), or dense with noise."""
    dense = torch.randn(length, VOCABULARY, generator=torch.Generator().manual_seed(0))
    logits = dense.clone()
    if seed is not None:
        logits += torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    ids = torch.arange(length) % VOCABULARY
    reference = dense_positions(dense, ids)
    counted = length if every_position else length - 1
    found = positions(logits, ids, dense, reference)
    return WindowView(0, ids, 3 * length, counted, reference, found, dense, logits, reference.choice)


def model() -> ModelView:
    """Every second prunable weight gone, and three prompts continued, one of them otherwise than dense."""
    structure = structure_of("facebook/opt-125m")
    prunable = {p.name for p in structure.prunable(("attention", "mlp"))}
    views = [
        TensorView(
            parameter=p,
            prunable=p.name in prunable,
            numel=p.numel,
            nonzeros=p.numel // 2 if p.name in prunable else p.numel,
            component_bytes={"weight": 4 * p.numel},
            flops_executed=2 * p.numel if p.kind == "linear" else 0,
            output_error=(0.1, 2.0) if p.name in prunable else None,
        )
        for p in structure.parameters
    ]
    dense = torch.arange(24).reshape(3, 8) % 5
    tokens = dense.clone()
    tokens[1, 4:] = 0
    return ModelView(CELL, structure, "float16", 0, views, dense, tokens)


def rows(kind) -> list[Measurement]:
    return [*kind().window(window(1)), *kind().window(window(2, every_position=False)), *kind().model(model())]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryMetric:
    def test_describes_itself(self, kind):
        assert METRICS.get(kind.name) is kind
        assert len(kind.summary) > 20
        assert kind.__doc__
        assert set(kind.better.values()) <= {"higher", "lower", "neither"}

    def test_yields_what_it_promises(self, kind):
        found = {row.metric for row in rows(kind)}
        assert found, "neither a window nor a model gives a row"
        assert set(kind.better) <= found

    def test_rows_are_legal_and_finite(self, kind):
        for row in rows(kind):
            assert row.scope in SCOPES
            assert row.reduction in REDUCTIONS
            assert row.convention in CONVENTIONS
            assert row.unit in UNITS
            assert row.group in {"", *GROUPS}
            assert math.isfinite(row.numerator)
            assert math.isfinite(row.denominator)
            if row.reduction != "sum":
                assert row.denominator > 0
            if row.reduction == "max":
                assert row.denominator == 1
            if row.unit in {"bytes", "weights", "tokens", "flops"}:
                assert row.numerator == int(row.numerator) >= 0

    def test_one_name_combines_in_one_way(self, kind):
        ways: dict[str, set[tuple[str, str]]] = {}
        for row in rows(kind):
            ways.setdefault(row.metric, set()).add((row.reduction, row.unit))
        assert {name: way for name, way in ways.items() if len(way) > 1} == {}

    def test_says_the_same_twice_and_leaves_its_view_alone(self, kind):
        view = window(1)
        before = view.logits.clone(), view.dense_logits.clone()
        assert list(kind().window(view)) == list(kind().window(view))
        assert torch.equal(view.logits, before[0])
        assert torch.equal(view.dense_logits, before[1])

    def test_dense_is_never_worse_than_noise(self, kind):
        """Where a figure speaks of nearness to dense, dense itself is the best that a cell can be."""

        def figures(view):
            return {r.metric: r.numerator / r.denominator for r in kind().window(view) if r.scope == "window"}

        same, noisy = figures(window(None)), figures(window(1))
        for name, direction in kind.better.items():
            # Accuracy and likelihood speak of the text: a cell may beat dense there.
            if name not in same or f"{name}_dense" in same:
                continue
            if direction == "higher":
                assert same[name] >= noisy[name]
            elif direction == "lower":
                assert same[name] <= noisy[name] + 1e-12  # sums of 13 terms in float64


def test_names_belong_to_one_metric() -> None:
    owners: dict[str, set[str]] = {}
    for kind in KINDS:
        for row in rows(kind):
            if row.scope == "bin":
                continue  # a part of what another metric says of the whole
            owners.setdefault(row.metric, set()).add(kind.name)
    assert {name: who for name, who in owners.items() if len(who) > 1} == {}


def test_views_are_read_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        window(None).index = 3  # type: ignore[misc]

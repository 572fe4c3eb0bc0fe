"""The dense model against itself: which windows, what is compared, and that rounding is all that differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, LLAMA

from sparsehpc import floor
from sparsehpc.core.spec import Cell, Pruning, Windows
from sparsehpc.pipeline import run_cells
from sparsehpc.text.windows import TokenWindows

EVALUATION = Windows(corpus="samples", windows=5, window_tokens=64)
#: The head multiplies in float32, here eight rows at once and there six.
FLOAT32 = 1e-5

DENSE = Cell(model="m", evaluation=EVALUATION)
MASKED = Cell(
    model="m",
    evaluation=EVALUATION,
    variant="masked",
    pruning=Pruning(method="magnitude", pattern="unstructured", sparsity="0.3"),
)


def text(lengths=(5, 17, 30, 18, 9), every_position=True):
    generator = np.random.default_rng(0)
    return TokenWindows(
        ids=tuple(generator.integers(0, 512, n) for n in lengths),
        text_bytes=tuple(3 * n for n in lengths),
        every_position=every_position,
        starts=tuple(range(len(lengths))),
        source="random tokens",
    )


def run(cells, snapshot, tmp_path, evaluation=None):
    found = {}
    run_cells(
        cells, snapshot, evaluation or text(), {}, None, scratch=tmp_path, finished=lambda c, r: found.update({c: r})
    )
    return found


def figures(result):
    return {
        row.metric: (row.numerator, row.denominator) for row in result.measurements if row.metric.startswith("floor_")
    }


def test_pairs_are_alike_in_length_spread_over_the_text_and_bounded():
    lengths = [int(n) for n in np.random.default_rng(3).integers(10, 200, 100)]
    pairs = floor.pairs_of(lengths)
    chosen = [window for pair in pairs for window in pair]
    assert len(chosen) == len(set(chosen)) == floor.MOST_WINDOWS
    assert max(chosen) - min(chosen) > 80
    ordered = [lengths[window] for window in chosen]
    assert ordered == sorted(ordered)
    assert len(floor.pairs_of([2048] * 40)) == 1
    assert len(floor.pairs_of([100_000] * 40)) == 1
    assert floor.pairs_of([7, 3, 5]) == [(1, 2), (0, 0)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_model_is_itself_but_for_rounding(family, tiny_snapshot, tmp_path):
    before = torch.get_num_threads()
    results = run([DENSE, MASKED], tiny_snapshot(FAMILIES[family]), tmp_path)
    assert torch.get_num_threads() == before
    found = figures(results[DENSE])
    # Windows 0 and 4 share a batch of 5 tokens, 1 and 3 one of 17, 2 stands alone with its 30.
    counted = 5 + 5 + 17 + 17 + 30
    assert found["floor_top1_agreement"][1] == found["floor_positions"][0] == counted
    assert found["floor_kl"][1] == counted
    assert found["floor_nll"][1] == counted - 5
    # Rounding of float32 logits of a model of two layers: relative 1e-6, squared in the divergence.
    assert 0 <= found["floor_kl"][0] / counted <= found["floor_kl_max"][0] < 1e-9
    assert 0 <= found["floor_nll_max"][0] < 1e-4
    assert figures(results[MASKED]) == {}


def test_windows_of_one_text_count_no_last_position(tiny_snapshot, tmp_path):
    found = figures(run([DENSE], tiny_snapshot(LLAMA), tmp_path, text((16, 16), every_position=False))[DENSE])
    assert found["floor_positions"][0] == 30


def test_it_is_the_same_again_and_beside_other_cells(tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(LLAMA)
    first = figures(run([DENSE], snapshot, tmp_path)[DENSE])
    assert figures(run([DENSE, MASKED], snapshot, tmp_path)[DENSE]) == first


def test_figures_are_those_of_brute_force(tiny_snapshot, tmp_path, monkeypatch):
    """A second reading that is far off is measured as it is: probabilities in float64, window by window."""
    evaluation = text((6, 8))
    real, kept = floor._read_in_pairs, {}

    def disturbed(walk, pairs, *words):
        generator = torch.Generator().manual_seed(1)
        found = [
            (window, hidden + 0.5 * torch.randn(hidden.shape, generator=generator))
            for window, hidden in real(walk, pairs, *words)
        ]
        kept["walk"] = walk
        kept["again"] = {window: walk.head(hidden)[0].double().numpy() for window, hidden in found}
        return found

    whole = floor.measure_floor

    def measured(walk, dense, *words):
        kept["once"] = {window: walk.head(dense[window])[0].double().numpy()[:6] for window in range(2)}
        return whole(walk, dense, *words)

    monkeypatch.setattr(floor, "_read_in_pairs", disturbed)
    monkeypatch.setattr("sparsehpc.pipeline.measure_floor", measured)
    found = figures(run([DENSE], tiny_snapshot(LLAMA), tmp_path, evaluation)[DENSE])
    equal, kls, changes = [], [], []
    for window in range(2):
        first, second = kept["once"][window], kept["again"][window]
        log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (first, second))
        equal.append((first.argmax(axis=1) == second.argmax(axis=1)).sum())
        kls.append((np.exp(log_p) * (log_p - log_q)).sum())
        following = evaluation.ids[window][1:6]
        places = np.arange(5), following
        changes.append(abs((log_p[places] - log_q[places]).sum()))
    assert found["floor_top1_agreement"] == (sum(equal), 12)
    assert sum(equal) < 12
    assert found["floor_top1_differs_max"][0] == max(6 - n for n in equal) / 6
    assert found["floor_kl"][0] == pytest.approx(sum(kls), rel=FLOAT32)
    assert found["floor_kl_max"][0] == pytest.approx(max(kls) / 6, rel=FLOAT32)
    assert found["floor_nll"][0] == pytest.approx(sum(changes), rel=FLOAT32)
    assert found["floor_nll_max"][0] == pytest.approx(max(changes) / 5, rel=FLOAT32)

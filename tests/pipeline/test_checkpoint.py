"""A walk that is killed between two layers goes on there, with the same figures as one that was not."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import LLAMA, OPT

from sparsehpc.core.spec import Calibration, Cell, Pruning, Windows
from sparsehpc.pipeline import _Walk, run_cells
from sparsehpc.text.windows import TokenWindows

CALIBRATION = Calibration(corpus="python-docs", windows=2, window_tokens=16)
EVALUATION = Windows(corpus="samples", windows=3, window_tokens=64)


def text(lengths, seed):
    generator = np.random.default_rng(seed)
    ids = tuple(generator.integers(0, 512, n) for n in lengths)
    return TokenWindows(ids, tuple(3 * n for n in lengths), True, tuple(range(len(lengths))), "random tokens")


def cells():
    wanda = Pruning(method="wanda", pattern="unstructured", sparsity="0.5", calibration=CALIBRATION)
    magnitude = Pruning(method="magnitude", pattern="unstructured", sparsity="0.3")
    return [
        Cell(model="m", evaluation=EVALUATION),
        Cell(model="m", evaluation=EVALUATION, variant="csr", pruning=wanda),
        Cell(model="m", evaluation=EVALUATION, variant="masked", pruning=magnitude),
    ]


def cells_that_remember():
    """Methods that hold more than a mask: biases, budgets and units learned from the dense model, and notes."""

    def cell(method, pattern="unstructured", variant="masked", **more):
        pruning = Pruning(method=method, pattern=pattern, sparsity="0.4", calibration=CALIBRATION, **more)
        return Cell(model="m", evaluation=EVALUATION, variant=variant, pruning=pruning)

    return [
        Cell(model="m", evaluation=EVALUATION),
        cell("flap", "neurons", "compact"),
        cell("flap", "heads"),
        cell("block-influence", "layers"),
        cell("wanda", allocation="owl"),
        cell("magnitude-layerwise", variant="csr", refit=True),
        cell("sparsegpt", true_sequential=True, options=(("damping", 0.0),)),
        cell("admm", options=(("iterations", 6),)),
    ]


class KilledError(Exception):
    """Stands for SIGKILL: nothing of the walk may catch it."""


@pytest.fixture
def run(tiny_snapshot, tmp_path):
    def call(checkpoint, todo=None, seed=0, config=LLAMA):
        results = {}

        def finished(cell, result):
            assert not isinstance(result, Exception), result
            results[cell.cell_id] = ([tuple(r) for r in result.measurements], result.row["notes"])

        run_cells(
            todo or cells(),
            tiny_snapshot(config),
            text((7, 20, 9), seed),
            {CALIBRATION: text((16, 16), 9)},
            np.random.default_rng(1).integers(0, 512, (2, 5)),
            scratch=tmp_path / "scratch",
            checkpoint=checkpoint,
            finished=finished,
        )
        return results

    return call


def kill_after(monkeypatch, layers):
    real, done = _Walk._layer, []

    def layer(self, index):
        if len(done) == layers:
            raise KilledError
        done.append(index)
        real(self, index)

    monkeypatch.setattr(_Walk, "_layer", layer)
    return done


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_killed_walk_goes_on_with_equal_results(layers, run, tmp_path, monkeypatch):
    undisturbed = run(None)
    folder = tmp_path / "checkpoint"
    with monkeypatch.context() as patch:
        kill_after(patch, layers)
        with pytest.raises(KilledError):
            run(folder)
    with monkeypatch.context() as patch:
        done = kill_after(patch, -1)
        assert run(folder) == undisturbed
    assert done == list(range(layers, LLAMA["num_hidden_layers"]))
    assert not folder.exists()


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
def test_what_methods_gave_and_learned_is_there_again(config, run, tmp_path, monkeypatch):
    """Biases that were added (Llama) or changed (OPT), budgets, units and notes of the layers before the kill."""
    todo, folder = cells_that_remember(), tmp_path / "checkpoint"
    undisturbed = run(None, todo, config=config)
    notes = [note for _, note in undisturbed.values()]
    for word in ("refit_steps", "iterations", "damping_raised"):
        assert any("layers.0" in note and word in note for note in notes), word
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KilledError):
            run(folder, todo, config=config)
    with monkeypatch.context() as patch:
        done = kill_after(patch, -1)
        assert run(folder, todo, config=config) == undisturbed
    assert done == [2]


def test_a_state_of_other_text_or_cells_is_not_used(run, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    for changed in ({"seed": 5}, {"todo": cells()[:2]}):
        with monkeypatch.context() as patch:
            kill_after(patch, 2)
            with pytest.raises(KilledError):
                run(folder)
        expected = run(None, **changed)
        with monkeypatch.context() as patch:
            done = kill_after(patch, -1)
            assert run(folder, **changed) == expected
        assert done[0] == 0


@pytest.mark.parametrize("damage", ["state.json", "hidden"])
def test_a_damaged_state_starts_over(damage, run, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KilledError):
            run(folder)
    file = folder / "state.json" if damage == "state.json" else next(folder.glob("1-*.safetensors"))
    file.write_bytes(file.read_bytes()[:20])
    assert run(folder) == run(None)

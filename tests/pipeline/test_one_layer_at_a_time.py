"""What a walk reads and holds: a layer's weights once from disk, no file open or mapped, statistics gone once used."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from tiny_models import LLAMA

from sparsehpc import combinations
from sparsehpc.combinations import Combination
from sparsehpc.core.spec import Calibration, Cell, Pruning, Windows
from sparsehpc.models import weight_files
from sparsehpc.pipeline import _Walk, run_cells
from sparsehpc.text.windows import TokenWindows

CALIBRATION = Calibration(corpus="python-docs", windows=2, window_tokens=16)
EVALUATION = Windows(corpus="samples", windows=2, window_tokens=64)
LAYERS = LLAMA["num_hidden_layers"]


def text(lengths, seed):
    generator = np.random.default_rng(seed)
    ids = tuple(generator.integers(0, 512, n) for n in lengths)
    return TokenWindows(ids, tuple(3 * n for n in lengths), True, tuple(range(len(lengths))), "random tokens")


def cells(*methods, **more):
    prunings = [
        Pruning(method=name, pattern="unstructured", sparsity="0.5", calibration=CALIBRATION, **more)
        for name in methods
    ]
    stored = [Cell(model="m", evaluation=EVALUATION, variant=v, pruning=p) for p in prunings for v in ("masked", "csr")]
    return [Cell(model="m", evaluation=EVALUATION), *stored]


@pytest.fixture
def run(tiny_snapshot, tmp_path):
    def call(todo):
        def finished(cell, result):
            assert not isinstance(result, Exception), result

        snapshot = tiny_snapshot(LLAMA)
        calibration = {CALIBRATION: text((16, 16), 9)}
        run_cells(todo, snapshot, text((7, 9), 0), calibration, None, scratch=tmp_path, finished=finished)
        return snapshot

    return call


def held_files():
    """Files that this process has open or mapped."""
    opened = {os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()}
    mapped = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if line.count("/")}
    return opened | mapped


def test_a_layer_is_read_once_for_all_cells_and_its_file_is_closed_again(run, monkeypatch):
    opens, sizes, by_layer, held = [], [], [], []
    path_open, fill = Path.open, weight_files._fill

    def opening(path, *words, **named):
        if path.suffix == ".safetensors":
            opens.append(path)
        return path_open(path, *words, **named)

    def filling(file, tensor, nbytes, path):
        sizes.append(nbytes)
        fill(file, tensor, nbytes, path)

    walk_layer, advance = _Walk._layer, Combination.advance_calibration

    def layer(self, index):
        before = len(opens), len(sizes)
        walk_layer(self, index)
        by_layer.append((len(opens) - before[0], sum(sizes[before[1] :])))

    def advancing(self, *words):
        held.append(held_files())
        advance(self, *words)

    monkeypatch.setattr(Path, "open", opening)
    monkeypatch.setattr(weight_files, "_fill", filling)
    monkeypatch.setattr(_Walk, "_layer", layer)
    monkeypatch.setattr(Combination, "advance_calibration", advancing)
    snapshot = run(cells("wanda", "sparsegpt"))
    own = [4 * sum(p.numel for p in snapshot.structure.in_layer(index)) for index in range(LAYERS)]
    assert by_layer == [(1, size) for size in own]  # one open, and the bytes of the layer once, whatever reads them
    assert len(held) == 2 * LAYERS
    weights = {str(path) for path in opens}
    assert weights
    assert not any(files & weights for files in held)


@pytest.mark.parametrize("true_sequential", [False, True])
def test_hessians_are_shared_where_inputs_are_and_gone_before_the_layer_runs_on(true_sequential, run, monkeypatch):
    made, alive = [], []
    collector, advance = combinations.collector, Combination.advance_calibration

    def collecting(statistics, features, device="cpu"):
        found = collector(statistics, features, device)
        made.append((features, weakref.ref(found._hessian)))
        return found

    def advancing(self, *words):
        # No garbage collection here: they must be gone as soon as nothing uses them.
        alive.append([features for features, reference in made if reference() is not None])
        advance(self, *words)

    monkeypatch.setattr(combinations, "collector", collecting)
    monkeypatch.setattr(Combination, "advance_calibration", advancing)
    run(cells("sparsegpt", true_sequential=true_sequential))
    # One each for query, key and value; output; gate and up; down.
    assert [features for features, _ in made] == [64, 64, 64, 128] * LAYERS
    assert alive == [[]] * LAYERS

"""Masks of a model's first layers, in a process of its own: what `jobs.bench.masks` compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsehpc.combinations import Combination, dense_survey
from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.hidden import HiddenStates
from sparsehpc.models.snapshot import Snapshot
from sparsehpc.models.sources import prepare
from sparsehpc.models.stream import Call, LayerWalk
from sparsehpc.pruning.base import make_method
from sparsehpc.text.build import calibration_windows
from sparsehpc.text.tokenizer import load_tokenizer
from sparsehpc.text.windows import TokenWindows


class Together(LayerWalk):
    """Equally long windows at once, behind the interface of one window: their hidden states one after another."""

    def __init__(self, snapshot: Snapshot, windows: int) -> None:
        super().__init__(snapshot)
        self.windows = windows

    def embed(self, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Call]:
        """Embed ids of 1 x (windows x tokens)."""
        hidden, call = super().embed(ids.view(self.windows, -1), cache)
        return hidden.reshape(1, -1, hidden.shape[-1]), call

    def call(self, tokens: int, batch: int = 1) -> Call:
        """Arguments of the layers for all windows."""
        return super().call(tokens // self.windows, self.windows)

    def run(self, layer: int, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        """Run one decoder layer over all windows."""
        return super().run(layer, hidden.view(self.windows, -1, hidden.shape[-1]), call).reshape(hidden.shape)


def together(text: TokenWindows) -> TokenWindows:
    """The same windows as one."""
    return TokenWindows((np.concatenate(text.ids),), (sum(text.text_bytes),), False, (0,), text.source)


def masks(walk: LayerWalk, text: TokenWindows, pruning: Pruning, layers: int) -> Iterator[torch.Tensor]:
    """What is zero in each of the first decoder layers, flat, as the walk of a study prunes them."""
    method, structure = make_method(pruning), walk.structure
    parameters = structure.prunable(pruning.targets)
    lengths = [len(window) for window in text.ids]

    def read(name: str) -> torch.Tensor:
        return walk.read([name])[name]

    def hidden_states() -> HiddenStates:
        return HiddenStates(lengths, structure.hidden, walk.dtype, walk.device, None)

    type(method).survey_all([method], parameters, read)
    if method.dense_statistics is not None:
        names = {p.name for p in parameters}
        found = dense_survey(walk, text, hidden_states(), names, method.dense_statistics, lambda *done: None)
        method.learn(parameters, read, found)
    combination = Combination(pruning, method, parameters, [])
    if method.wanted_statistics:
        combination.calibration, combination.calibration_tokens = hidden_states(), lengths
        walk.load_outside()
        for window, ids in enumerate(text.ids):
            combination.calibration[window], _ = walk.embed(torch.from_numpy(ids)[None])
        walk.unload_outside()
    for layer in range(min(layers, structure.layers)):
        pruned = combination.prune_layer(walk, layer, walk.load(layer))
        walk.unload(layer)
        yield torch.cat([(weight == 0).view(-1) for weight in pruned.values()])


def main(model: str, file: str, threads: int, batch: bool, calibration: Calibration, work: dict[str, Any]) -> None:
    """Write the masks of every way of pruning in ``work`` (name: pruning, layers) to an npz ``file``, bits packed."""
    torch.set_num_threads(threads)
    snapshot = prepare(model)
    tokenizer = load_tokenizer(snapshot.path)
    text = calibration_windows(calibration, None, tokenizer, snapshot.structure.max_positions)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, (options, layers) in work.items():
        sys.stderr.write(f"{name}\n")
        # JSON has no tuples.
        given: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in options.items()}
        pruning = Pruning(**given, calibration=calibration)
        walk = Together(snapshot, len(text.ids)) if batch else LayerWalk(snapshot)
        with torch.inference_mode():
            for layer, mask in enumerate(masks(walk, together(text) if batch else text, pruning, layers)):
                found[f"{name}/{layer}"] = np.packbits(mask.numpy())
                found[f"{name}/{layer}/bits"] = np.array(mask.numel())
    np.savez(file, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    main(**{**arguments, "calibration": Calibration(**arguments["calibration"])})

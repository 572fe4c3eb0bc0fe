"""A walk's state between two layers, so that a killed job goes on where it was.

::

    FOLDER/ state.json                 the commit mark: key, last finished layer, what was counted
            <layer>-<stream>.safetensors   hidden states of every stream after that layer
            <track>.layers/            stored weights kept for generation, one file a layer

What is decided before the walk (thresholds, budgets, embeddings) is computed again: it is cheap and deterministic.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sparsehpc.core.errors import CellError
from sparsehpc.core.files import write_atomically, write_text
from sparsehpc.metrics.base import TensorView

if TYPE_CHECKING:
    from sparsehpc.combinations import Combination
    from sparsehpc.models.hidden import HiddenStates
    from sparsehpc.models.structure import Parameter
    from sparsehpc.tracks import Track


class Checkpoint:
    """Saves and restores the streams of one walk.

    Parameters
    ----------
    folder
        Its own folder; made where it is missing.
    key
        Everything that decides the walk's results: cells, digests of weights and tokens, versions, threads. A state
        with another key is thrown away.
    """

    def __init__(self, folder: Path, key: Sequence[object]) -> None:
        self.folder = folder
        self.key = hashlib.sha256(json.dumps([str(part) for part in key]).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    def save(self, layer: int, dense: Track, combinations: Sequence[Combination]) -> None:
        """Keep the state after ``layer``; the state before it stays valid until this one is whole."""
        for name, hidden in _streams(dense, combinations):
            arrays = {str(window): hidden[window].contiguous().cpu() for window in range(len(hidden))}
            write_atomically(self._hidden(layer, name), functools.partial(save_file, arrays))
        state = {
            "key": self.key,
            "layer": layer,
            "dense": _track_state(dense),
            "combinations": [
                {"notes": c.notes, "clock": c.clock.seconds, "tracks": [_track_state(t) for t in c.tracks]}
                for c in combinations
            ],
        }
        write_text(self._state, json.dumps(state))
        for file in self.folder.glob("*-*.safetensors"):
            if not file.name.startswith(f"{layer}-"):
                file.unlink()

    def restore(self, dense: Track, combinations: Sequence[Combination], parameters: Mapping[str, Parameter]) -> int:
        """Bring a saved state back into tracks and combinations.

        Parameters
        ----------
        dense, combinations
            As they are after embedding.
        parameters
            Parameters of the model by name.

        Returns
        -------
        layer
            First layer that is left to do; 0 where there is no usable state.
        """
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            if state["key"] != self.key:
                return self._start_over()
            layer = int(state["layer"])
            saved = {name: load_file(self._hidden(layer, name)) for name, _ in _streams(dense, combinations)}
        except FileNotFoundError:
            return self._start_over()
        except (OSError, ValueError, KeyError, SafetensorError):
            # Damaged by whatever killed the job: the walk starts over, nothing is lost but time.
            return self._start_over()
        for name, hidden in _streams(dense, combinations):
            for window in range(len(hidden)):
                hidden[window] = saved[name][str(window)].clone()
        _restore_track(dense, state["dense"], parameters)
        for combination, kept in zip(combinations, state["combinations"], strict=True):
            combination.notes = kept["notes"]
            combination.clock.seconds = kept["clock"]
            for track, entry in zip(combination.tracks, kept["tracks"], strict=True):
                _restore_track(track, entry, parameters)
        return layer + 1

    def _start_over(self) -> int:
        for entry in self.folder.iterdir():
            if entry.is_dir():
                for file in entry.iterdir():
                    file.unlink()
            else:
                entry.unlink()
        return 0

    def discard(self) -> None:
        """Remove the state of a walk that has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _hidden(self, layer: int, stream: str) -> Path:
        return self.folder / f"{layer}-{stream}.safetensors"


def _streams(dense: Track, combinations: Sequence[Combination]) -> Iterator[tuple[str, HiddenStates]]:
    """Hidden states of every stream that goes on, by a name of its own."""
    yield "dense", dense.hidden
    for number, combination in enumerate(combinations):
        if combination.calibration is not None:
            yield f"{number}-calibration", combination.calibration
        for place, track in enumerate(combination.tracks):
            yield f"{number}-{place}", track.hidden


def _track_state(track: Track) -> dict[str, Any]:
    return {
        "tensors": [
            {f.name: getattr(view, f.name) for f in dataclasses.fields(view) if f.name != "parameter"}
            | {"parameter": view.parameter.name, "component_bytes": dict(view.component_bytes)}
            for view in track.tensors
        ],
        "kernels": sorted(track.kernels),
        "notes": track.notes,
        "exact": track.exact,
        "clock": track.clock.seconds,
        "error": None if track.error is None else str(track.error),
    }


def _restore_track(track: Track, kept: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> None:
    track.tensors = [_tensor(view, parameters) for view in kept["tensors"]]
    track.kernels = set(kept["kernels"])
    track.notes = kept["notes"]
    track.exact = kept["exact"]
    track.clock.seconds = kept["clock"]
    track.error = None if kept["error"] is None else CellError(kept["error"])


def _tensor(kept: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> TensorView:
    error = kept["output_error"]
    own = {"parameter": parameters[kept["parameter"]], "output_error": None if error is None else tuple(error)}
    return TensorView(**{**kept, **own})

"""After the walk: norm and head window by window for every track, and greedy generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from sparsehpc.combinations import Combination
from sparsehpc.core.errors import CellError
from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.base import METRICS, WindowView
from sparsehpc.metrics.positions import DensePositions, dense_positions, positions
from sparsehpc.metrics.rows import Rows
from sparsehpc.models.generate import generate

if TYPE_CHECKING:
    from sparsehpc.models.spool import LayerStore
    from sparsehpc.models.stream import LayerWalk
    from sparsehpc.text.windows import TokenWindows
    from sparsehpc.tracks import Track

#: Tokens that greedy generation adds to every prompt.
GENERATED_TOKENS = 24


class Behaviour:
    """Measures what the tracks of one walk say.

    Parameters
    ----------
    walk
        The walk, with what lies outside the layers loaded.
    dense, combinations
        The dense track, and all others.
    outside
        Dense tensors outside the layers.
    progress
        Called with a stage, steps done and steps in all.
    """

    def __init__(
        self,
        walk: LayerWalk,
        dense: Track,
        combinations: Sequence[Combination],
        outside: Mapping[str, torch.Tensor],
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.walk = walk
        self.dense = dense
        self.combinations = combinations
        self.outside = outside
        self.progress = progress
        self.metrics = [kind() for _, kind in METRICS]

    def windows(self, evaluation: TokenWindows) -> dict[int, list[Measurement]]:
        """Rows of every evaluation window, by the identity of the track."""
        tracks = [self.dense, *(track for c in self.combinations for track in c.open_tracks)]
        rows = {id(track): Rows() for track in tracks}
        for window, array in enumerate(evaluation.ids):
            self.progress("windows", window, len(evaluation.ids))
            ids = torch.from_numpy(array).to(self.walk.device)
            with self.dense.clock.phase("evaluate"):
                logits = self.walk.head(self.dense.hidden[window])[0]
                if not bool(torch.isfinite(logits).all()):
                    raise CellError(f"dense model, output head: logits of window {window} hold NaN or Inf")
                dense = dense_positions(logits, ids)
            reading = _Reading(window, ids, evaluation, logits, dense)
            rows[id(self.dense)].extend(self._measure(reading, logits, None)[0])
            for combination in self.combinations:
                self._combination(combination, reading, rows)
        self.progress("windows", len(evaluation.ids), len(evaluation.ids))
        return {track: found.all() for track, found in rows.items()}

    def _combination(self, combination: Combination, reading: _Reading, rows: Mapping[int, Rows]) -> None:
        masked = None
        for track in combination.open_tracks:
            with track.clock.phase("evaluate"):
                with combination.outside_layers(self.walk, track, self.outside):
                    logits = self.walk.head(track.hidden[reading.window])[0]
                if not bool(torch.isfinite(logits).all()):
                    track.error = CellError(f"output head: logits of window {reading.window} hold NaN or Inf")
                    continue
                found, choice = self._measure(reading, logits, masked)
                rows[id(track)].extend(found)
            if track is combination.tracks[0]:
                masked = choice

    def _measure(
        self, reading: _Reading, logits: torch.Tensor, masked: torch.Tensor | None
    ) -> tuple[list[Measurement], torch.Tensor]:
        """Rows of all metrics, and the choices they speak of."""
        found = positions(logits, reading.ids, reading.dense_logits, reading.dense)
        text = reading.evaluation
        view = WindowView(
            index=reading.window,
            ids=reading.ids,
            text_bytes=text.text_bytes[reading.window],
            counted=len(reading.ids) if text.every_position else len(reading.ids) - 1,
            dense=reading.dense,
            positions=found,
            dense_logits=reading.dense_logits,
            logits=logits,
            masked_choice=masked,
        )
        return [row for metric in self.metrics for row in metric.window(view)], found.choice

    def continuations(
        self, prompts: torch.Tensor | None, plain: Sequence[Mapping[str, torch.Tensor]], memory_bytes: int | None
    ) -> Iterator[tuple[Track, Combination | None, torch.Tensor | None]]:
        """Every track, the dense one (without combination) first, with its greedy continuations.

        Parameters
        ----------
        prompts
            Prompts x length, or None to generate nothing.
        plain
            Norms and biases of every layer.
        memory_bytes
            What one track's weights may fill; larger ones are read again for every token.

        Yields
        ------
        track, combination, tokens
            Continuations are prompts x new tokens; None where the track failed or keeps no weights.
        """
        tracks: list[tuple[Track, Combination | None]] = [(self.dense, None)]
        tracks += [(track, c) for c in self.combinations for track in c.tracks]
        for done, (track, combination) in enumerate(tracks):
            tokens = None
            if prompts is not None and track.store is not None and track.error is None:
                self.progress("generation", done, len(tracks))
                track.store.recall(memory_bytes, self.walk.device)
                mine = (
                    nullcontext() if combination is None else combination.outside_layers(self.walk, track, self.outside)
                )
                with track.clock.phase("evaluate"), mine:
                    tokens = self._generate(prompts, plain, track.store, combination)
            track.store = None
            yield track, combination, tokens
        self.progress("generation", len(tracks), len(tracks))

    def _generate(
        self,
        prompts: torch.Tensor,
        plain: Sequence[Mapping[str, torch.Tensor]],
        store: LayerStore,
        combination: Combination | None,
    ) -> torch.Tensor:
        def biases(layer: int) -> AbstractContextManager[None]:
            return nullcontext() if combination is None else combination.own_biases(self.walk, layer)

        return generate(self.walk, prompts, GENERATED_TOKENS, plain, store, biases)


class _Reading:
    """One window as the dense model reads it."""

    def __init__(
        self,
        window: int,
        ids: torch.Tensor,
        evaluation: TokenWindows,
        dense_logits: torch.Tensor,
        dense: DensePositions,
    ) -> None:
        self.window = window
        self.ids = ids
        self.evaluation = evaluation
        self.dense_logits = dense_logits
        self.dense = dense

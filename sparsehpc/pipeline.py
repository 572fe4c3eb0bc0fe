"""Run cells of one model: a walk over its layers in plain order, rows of figures out.

For every decoder layer: read it, run the dense stream; for every combination collect statistics on the calibration
stream through the unpruned layer, prune, run the calibration stream through the pruned layer; for every variant store
the pruned weights and run its evaluation stream through that storage; drop the layer. Then norm and head, window by
window, and greedy generation. A model is never loaded whole.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsehpc.core.errors import CellError, SparseHPCError
from sparsehpc.core.keys import key_row
from sparsehpc.core.machine import cpu_model, peak_rss_bytes
from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import DEFAULT_TARGETS, DENSE, Calibration, Cell, Pruning
from sparsehpc.formats.base import FORMATS
from sparsehpc.metrics.base import METRICS, ModelView, WindowView
from sparsehpc.metrics.positions import dense_positions, positions
from sparsehpc.models.generate import generate
from sparsehpc.models.hidden import HiddenStates
from sparsehpc.models.spool import LayerStore
from sparsehpc.models.stream import LayerWalk
from sparsehpc.pruning.allocation import allocate
from sparsehpc.pruning.base import METHODS, make_method
from sparsehpc.tracks import Clock, Combination, Track, collect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.text.windows import TokenWindows

#: Variant whose storage is a plain tensor with zeros: what other variants' choices are compared with.
MASKED = "masked"
#: Tokens that greedy generation adds to every prompt.
GENERATED_TOKENS = 24
WORSE_THAN_GUESSING = "worse than guessing"


@dataclasses.dataclass(frozen=True, slots=True)
class CellResult:
    """What one cell came to.

    Parameters
    ----------
    row
        Columns of `schema.CELL` that the pipeline knows.
    measurements
        Its figures.
    """

    row: dict[str, Any]
    measurements: list[Measurement]


Progress = Callable[[str, int, int], None]
Finished = Callable[[Cell, "CellResult | CellError"], None]


def run_cells(
    cells: Sequence[Cell],
    snapshot: Snapshot,
    evaluation: TokenWindows,
    calibrations: Mapping[Calibration, TokenWindows],
    prompts: NDArray[Any] | None,
    *,
    scratch: Path,
    memory_bytes: int | None = None,
    progress: Progress | None = None,
    finished: Finished,
) -> None:
    """Compute cells that share a model, dtype, device and evaluation text.

    Parameters
    ----------
    cells
        Cells with equal `Cell.walk_key`.
    snapshot
        The model.
    evaluation
        Windows that behaviour is measured on.
    calibrations
        Windows for each calibration that a cell names.
    prompts
        Prompts for greedy generation (prompts x length), or None to generate nothing.
    scratch
        Folder on a local disk for what exceeds the memory budget; emptied by the caller.
    memory_bytes
        Budget; None is unlimited.
    progress
        Called with a stage, steps done and steps in all.
    finished
        Called once per cell with its result, or with the error that only this cell had.
    """
    keys = {cell.walk_key for cell in cells}
    if len(keys) != 1:
        raise SparseHPCError(f"cells of {len(keys)} walks in one job: {sorted(map(str, keys))}")
    with torch.inference_mode():
        walk = _Walk(cells, snapshot, evaluation, calibrations, prompts, scratch, memory_bytes, progress)
        try:
            walk.run(finished)
        finally:
            walk.close()


class _Walk:
    """The state of one `run_cells`."""

    def __init__(
        self,
        cells: Sequence[Cell],
        snapshot: Snapshot,
        evaluation: TokenWindows,
        calibrations: Mapping[Calibration, TokenWindows],
        prompts: NDArray[Any] | None,
        scratch: Path,
        memory_bytes: int | None,
        progress: Progress | None,
    ) -> None:
        self.started = time.perf_counter()
        self.started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.snapshot = snapshot
        self.cell = cells[0]
        self.evaluation = evaluation
        self.calibrations = calibrations
        self.prompts = None if prompts is None else torch.from_numpy(prompts)
        self.scratch = scratch
        self.progress: Progress = progress or (lambda stage, done, total: None)
        self.clock = Clock()
        self.walk = LayerWalk(snapshot, self.cell.dtype, self.cell.device)
        self.structure = snapshot.structure
        self.ids = [torch.from_numpy(window) for window in evaluation.ids]
        self.lengths = [len(window) for window in evaluation.ids]
        self.plain: list[dict[str, torch.Tensor]] = []
        self.spill = memory_bytes is not None and self._wanted_bytes(cells) > memory_bytes
        self.dense = self._track(DENSE, None, DEFAULT_TARGETS)
        self.dense_cells = [cell for cell in cells if cell.is_dense]
        self.combinations = self._combinations([cell for cell in cells if not cell.is_dense])

    # -- setting up -------------------------------------------------------------------------------------------

    def _wanted_bytes(self, cells: Sequence[Cell]) -> int:
        """Bytes that all streams, and all weights kept for generation, would hold in memory."""
        streams = len(cells) + 2
        hidden = HiddenStates.nbytes(self.lengths, self.structure.hidden, self.walk.dtype)
        hidden += sum(
            HiddenStates.nbytes([len(w) for w in text.ids], self.structure.hidden, self.walk.dtype)
            for text in self.calibrations.values()
        )
        weights = self.structure.params_total * self.walk.dtype.itemsize if self.prompts is not None else 0
        # A CSR copy at low sparsity takes up to three times the dense weights.
        return streams * (hidden + 3 * weights)

    def _hidden(self, lengths: list[int], name: str) -> HiddenStates:
        file = self.scratch / f"{name}.hidden" if self.spill else None
        return HiddenStates(lengths, self.structure.hidden, self.walk.dtype, self.cell.device, file)

    def _track(self, variant: str, cell: Cell | None, targets: tuple[str, ...], name: str = DENSE) -> Track:
        store = None
        if self.prompts is not None and (cell is not None or variant == DENSE):
            store = LayerStore(self.scratch / f"{name}.layers" if self.spill else None)
        prunable = frozenset(p.name for p in self.structure.prunable(targets))
        return Track(variant, self._hidden(self.lengths, name), prunable, store, cell)

    def _combinations(self, cells: Sequence[Cell]) -> list[Combination]:
        grouped: dict[Pruning, list[Cell]] = {}
        for cell in cells:
            grouped.setdefault(cell.pruning, []).append(cell)
        combinations = []
        for number, (pruning, members) in enumerate(grouped.items()):
            method = make_method(pruning)
            masked = next((cell for cell in members if cell.variant == MASKED), None)
            others = [cell for cell in members if cell.variant != MASKED]
            # The reference runs even if no cell of this job is masked: results must not depend on packing.
            tracks = [self._track(MASKED, masked, pruning.targets, f"{number}-{MASKED}")]
            tracks += [self._track(cell.variant, cell, pruning.targets, f"{number}-{cell.variant}") for cell in others]
            combination = Combination(pruning, method, self.structure.prunable(pruning.targets), tracks)
            if method.needs_calibration(pruning.allocation, pruning.refit):
                if pruning.calibration is None:
                    raise SparseHPCError(f"{pruning.method} has no calibration text")
                text = self.calibrations[pruning.calibration]
                combination.calibration_tokens = [len(window) for window in text.ids]
                combination.calibration = self._hidden(list(combination.calibration_tokens), f"{number}-calibration")
            combinations.append(combination)
        return combinations

    # -- the walk ---------------------------------------------------------------------------------------------

    def run(self, finished: Finished) -> None:
        """Walk the model and report every cell."""
        self._survey()
        self._allocate()
        self._embed()
        for layer in range(self.structure.layers):
            self.progress("layers", layer, self.structure.layers)
            self._layer(layer)
        self.progress("layers", self.structure.layers, self.structure.layers)
        with self.clock.phase("load"):
            outside = self.walk.load_outside()
        for track in self._tracks():
            track.account(self.structure.outside_layers, outside, {})
        rows = self._windows()
        tokens = self._generate()
        self._report(finished, rows, tokens)

    def close(self) -> None:
        """Free hidden states and their files."""
        self.dense.hidden.close()
        for combination in self.combinations:
            for track in combination.tracks:
                track.hidden.close()
            if combination.calibration is not None:
                combination.calibration.close()

    def _tracks(self) -> list[Track]:
        return [self.dense, *(track for c in self.combinations for track in c.open_tracks)]

    def _survey(self) -> None:
        """Let methods that rank across layers look at all weights, one at a time."""
        by_kind: dict[tuple[str, tuple[str, ...]], list[Combination]] = {}
        for combination in self.combinations:
            pruning = combination.pruning
            by_kind.setdefault((pruning.method, pruning.targets), []).append(combination)
        for done, ((method, _), combinations) in enumerate(by_kind.items()):
            self.progress("survey", done, len(by_kind))
            with combinations[0].clock.phase("prune"):
                METHODS.get(method).survey_all(
                    [c.method for c in combinations],
                    combinations[0].parameters,
                    lambda name: self.walk.read([name])[name],
                )

    def _allocate(self) -> None:
        """Spread budgets over layers where that takes a look at the dense model's calibration stream first."""
        waiting: dict[Calibration, list[Combination]] = {}
        for combination in self.combinations:
            pruning = combination.pruning
            if pruning.calibration is not None and pruning.allocation in combination.method.learned_allocations:
                waiting.setdefault(pruning.calibration, []).append(combination)
        for calibration, combinations in waiting.items():
            with combinations[0].clock.phase("prune"):
                norms = self._dense_norms(calibration, {p.name for c in combinations for p in c.parameters})
                for combination in combinations:
                    try:
                        allocate(
                            combination.method,
                            combination.parameters,
                            lambda name: self.walk.read([name])[name],
                            norms,
                        )
                    except CellError as error:
                        combination.fail(error)

    def _dense_norms(self, calibration: Calibration, wanted: Collection[str]) -> dict[str, torch.Tensor]:
        """Input norms of the dense model's linears over one calibration text, by weight name."""
        windows = self.calibrations[calibration].ids
        lengths = [len(window) for window in windows]
        hidden = self._hidden(lengths, "dense-calibration")
        norms: dict[str, torch.Tensor] = {}
        try:
            self.walk.load_outside()
            for window, array in enumerate(windows):
                hidden[window], _ = self.walk.embed(torch.from_numpy(array)[None])
            self.walk.unload_outside()
            for layer in range(self.structure.layers):
                self.progress("dense calibration", layer, self.structure.layers)
                self.walk.load(layer)
                found = collect(self.walk, layer, hidden, lengths, wanted, ("input_norm",), advance=True)
                norms |= {name: statistics["input_norm"] for name, statistics in found.items()}
                self.walk.unload(layer)
        finally:
            hidden.close()
        return norms

    def _embed(self) -> None:
        with self.clock.phase("load"):
            self.walk.load_outside()
        for window, ids in enumerate(self.ids):
            hidden, _ = self.walk.embed(ids[None])
            for track in self._tracks():
                track.hidden[window] = hidden
        for combination in self.combinations:
            if combination.calibration is not None and combination.pruning.calibration is not None:
                for window, array in enumerate(self.calibrations[combination.pruning.calibration].ids):
                    hidden, _ = self.walk.embed(torch.from_numpy(array)[None])
                    combination.calibration[window] = hidden
        self.walk.unload_outside()

    def _layer(self, layer: int) -> None:
        parameters = self.structure.in_layer(layer)
        with self.clock.phase("load"):
            tensors = self.walk.load(layer)
        linears = {p.name for p in parameters if p.kind == "linear"}
        plain = {name: tensor for name, tensor in tensors.items() if name not in linears}
        dense = {name: FORMATS.get(DENSE).encode(tensors[name]) for name in linears}
        self.plain.append(plain)
        self.dense.account(parameters, tensors, {})
        self.dense.run(self.walk, layer, self.lengths)
        if self.dense.store is not None:
            self.dense.store.put(layer, DENSE, dense)
        for combination in self.combinations:
            try:
                self._combination(combination, layer, tensors, linears)
            except CellError as error:
                combination.fail(error)
            self.walk.install(dense)
        self.walk.unload(layer)

    def _combination(
        self, combination: Combination, layer: int, tensors: Mapping[str, torch.Tensor], linears: set[str]
    ) -> None:
        """Prune one layer for one combination and run its tracks; the walk holds the layer's dense weights."""
        if not combination.open_tracks:
            return
        with combination.clock.phase("prune"):
            statistics = combination.statistics(self.walk, layer)
            pruned = combination.prune(layer, tensors, statistics)
        present = {**tensors, **pruned}
        for track in combination.open_tracks:
            try:
                stored = track.encode(pruned, combination.pruning.pattern)
                self.walk.install(stored)
                if track is combination.tracks[0]:
                    # Calibration always runs masked: a mask must not depend on how weights are stored.
                    combination.advance_calibration(self.walk, layer)
                track.run(self.walk, layer, self.lengths)
            except CellError as error:
                track.error = error
                continue
            track.account(self.structure.in_layer(layer), present, stored)
            if track.store is not None:
                kept = {name: stored.get(name) or FORMATS.get(DENSE).encode(tensors[name]) for name in linears}
                track.store.put(layer, track.variant, kept)

    # -- behaviour --------------------------------------------------------------------------------------------

    def _windows(self) -> dict[int, list[Measurement]]:
        """Apply norm and head window by window; rows by track."""
        metrics = [kind() for _, kind in METRICS]
        rows: dict[int, list[Measurement]] = {id(track): [] for track in self._tracks()}
        for window, ids in enumerate(self.ids):
            self.progress("windows", window, len(self.ids))
            on_device = ids.to(self.cell.device)
            with self.dense.clock.phase("evaluate"):
                dense_logits = self._logits(self.dense, window)
                dense = dense_positions(dense_logits, on_device)
            counted = len(ids) if self.evaluation.every_position else len(ids) - 1

            def measure(
                track: Track,
                logits: torch.Tensor,
                masked: torch.Tensor | None,
                *,
                window: int = window,
                ids: torch.Tensor = on_device,
                dense_logits: torch.Tensor = dense_logits,
                dense: Any = dense,
                counted: int = counted,
            ) -> torch.Tensor:
                found = positions(logits, ids, dense_logits, dense)
                size = self.evaluation.text_bytes[window]
                view = WindowView(window, ids, size, counted, dense, found, masked)
                for metric in metrics:
                    rows[id(track)].extend(metric.window(view))
                return found.choice

            measure(self.dense, dense_logits, None)
            for combination in self.combinations:
                masked = None
                for track in combination.open_tracks:
                    with track.clock.phase("evaluate"):
                        logits = self._logits(track, window)
                        if not bool(torch.isfinite(logits).all()):
                            track.error = CellError(f"output head: logits of window {window} hold NaN or Inf")
                            continue
                        choice = measure(track, logits, masked)
                    if track is combination.tracks[0]:
                        masked = choice
        self.progress("windows", len(self.ids), len(self.ids))
        return rows

    def _logits(self, track: Track, window: int) -> torch.Tensor:
        return self.walk.head(track.hidden[window])[0]

    def _generate(self) -> dict[int, torch.Tensor]:
        """Greedy continuations by track."""
        if self.prompts is None:
            return {}
        tracks = [track for track in self._tracks() if track.store is not None]
        tokens = {}
        for done, track in enumerate(tracks):
            self.progress("generation", done, len(tracks))
            with track.clock.phase("evaluate"):
                if track.store is not None:
                    tokens[id(track)] = generate(self.walk, self.prompts, GENERATED_TOKENS, self.plain, track.store)
            track.store = None
        self.progress("generation", len(tracks), len(tracks))
        return tokens

    # -- rows -------------------------------------------------------------------------------------------------

    def _report(
        self, finished: Finished, rows: Mapping[int, list[Measurement]], tokens: Mapping[int, torch.Tensor]
    ) -> None:
        dense_tokens = tokens.get(id(self.dense))
        for cell in self.dense_cells:
            finished(cell, self._result(cell, self.dense, None, rows[id(self.dense)], dense_tokens, dense_tokens))
        for combination in self.combinations:
            for track in combination.tracks:
                if track.cell is None:
                    continue
                if track.error is not None:
                    finished(track.cell, track.error)
                    continue
                result = self._result(
                    track.cell, track, combination, rows[id(track)], dense_tokens, tokens.get(id(track))
                )
                finished(track.cell, result)

    def _result(
        self,
        cell: Cell,
        track: Track,
        combination: Combination | None,
        rows: Sequence[Measurement],
        dense_tokens: torch.Tensor | None,
        tokens: torch.Tensor | None,
    ) -> CellResult:
        source = self.snapshot.source_bytes if self.snapshot.trained else 0
        view = ModelView(
            cell=cell,
            structure=self.structure,
            published_dtype=self.snapshot.published_dtype,
            source_bytes=source,
            tensors=track.tensors,
            dense_tokens=dense_tokens,
            tokens=tokens,
        )
        measurements = list(rows)
        for _, kind in METRICS:
            measurements.extend(kind().model(view))
        calibration = cell.pruning.calibration
        calibration_text = self.calibrations[calibration] if calibration is not None else None
        row = key_row(cell) | {
            "trained": self.snapshot.trained,
            "published_dtype": self.snapshot.published_dtype,
            "source_bytes": source,
            "snapshot_digest": self.snapshot.digest,
            "evaluation_digest": self.evaluation.digest,
            "calibration_digest": calibration_text.digest if calibration_text is not None else None,
            "lossless": FORMATS.get(cell.variant).lossless,
            "kernel": ", ".join(sorted(track.kernels)) or "torch.linear",
            "mark": self._mark(rows),
            "notes": json.dumps(combination.notes if combination else {}, sort_keys=True),
            "load_s": self.clock["load"],
            "dense_s": self.dense.clock["evaluate"],
            "prune_s": combination.clock["prune"] if combination else 0.0,
            "encode_s": track.clock["encode"],
            "evaluate_s": track.clock["evaluate"],
            "wall_s": time.perf_counter() - self.started,
            "peak_rss_bytes": peak_rss_bytes(),
            "threads": torch.get_num_threads(),
            "cpu_model": cpu_model(),
            "device_name": torch.cuda.get_device_name() if cell.device == "cuda" else cpu_model(),
            "started_at": self.started_at,
        }
        return CellResult(row, measurements)

    def _mark(self, rows: Sequence[Measurement]) -> str:
        """Verdict on perplexity: above the vocabulary size, a uniform guess does better."""
        nll = [row for row in rows if row.metric == "nll"]
        tokens = sum(row.denominator for row in nll)
        if tokens and sum(row.numerator for row in nll) / tokens > math.log(self.structure.vocab_size):
            return WORSE_THAN_GUESSING
        return ""

"""Run cells of one model: a walk over its layers in plain order, rows of figures out.

For every decoder layer: read it, run the dense stream; for every combination collect statistics on the calibration
stream through the unpruned layer, prune, run the calibration stream through the pruned layer; for every variant store
the pruned weights and run its evaluation stream through that storage; drop the layer. Then norm and head, window by
window, and greedy generation. A model is never loaded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import __version__ as transformers_version

from sparsehpc import __version__
from sparsehpc.behaviour import Behaviour
from sparsehpc.checkpoint import Checkpoint
from sparsehpc.combinations import Combination, dense_survey
from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.machine import return_freed_memory
from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import DEFAULT_TARGETS, DENSE, Calibration, Cell, Pruning
from sparsehpc.floor import measure_floor
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.hidden import HiddenStates
from sparsehpc.models.memory import kept_tracks
from sparsehpc.models.spool import LayerStore
from sparsehpc.models.stream import LayerWalk
from sparsehpc.models.structure import bias_parameter
from sparsehpc.pruning.base import METHODS, DenseSurvey, Method, make_method
from sparsehpc.reconstruction import Sample, output_errors, sampled
from sparsehpc.results import CellResult, Results
from sparsehpc.tracks import Clock, Track, batches_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.text.windows import TokenWindows

#: Variant whose storage is a plain tensor with zeros: what other variants' choices are compared with.
MASKED = "masked"


Progress = Callable[[str, int, int], None]
Finished = Callable[[Cell, "CellResult | Exception"], None]


def run_cells(
    cells: Sequence[Cell],
    snapshot: Snapshot,
    evaluation: TokenWindows,
    calibrations: Mapping[Calibration, TokenWindows],
    prompts: NDArray[Any] | None,
    *,
    scratch: Path,
    memory_bytes: int | None = None,
    checkpoint: Path | None = None,
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
    checkpoint
        Folder that keeps the state after every layer, so that the same call goes on there; None keeps none.
    progress
        Called with a stage, steps done and steps in all.
    finished
        Called once per cell with its result, or with the error that only this cell had.
    """
    keys = {cell.walk_key for cell in cells}
    if len(keys) != 1:
        raise SparseHPCError(f"cells of {len(keys)} walks in one job: {sorted(map(str, keys))}")
    with torch.inference_mode():
        walk = _Walk(cells, snapshot, evaluation, calibrations, prompts, scratch, memory_bytes, checkpoint, progress)
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
        checkpoint: Path | None,
        progress: Progress | None,
    ) -> None:
        self.snapshot = snapshot
        self.cell = cells[0]
        self.evaluation = evaluation
        self.calibrations = calibrations
        self.prompts = None if prompts is None else torch.from_numpy(prompts)
        self.scratch = scratch
        self.progress: Progress = progress or (lambda stage, done, total: None)
        self.clock = Clock()
        self.results = Results(snapshot, evaluation, calibrations, self.clock)
        self.walk = LayerWalk(snapshot, self.cell.dtype, self.cell.device)
        self.structure = snapshot.structure
        self.ids = [torch.from_numpy(window) for window in evaluation.ids]
        self.lengths = [len(window) for window in evaluation.ids]
        self.batches = batches_of(self.lengths)
        self.plain: list[dict[str, torch.Tensor]] = []
        self.outside: dict[str, torch.Tensor] = {}
        self.memory_bytes = memory_bytes
        hidden = self._hidden_bytes(cells)
        self.spill_hidden = memory_bytes is not None and hidden > memory_bytes // 2
        self.spill_weights = memory_bytes is not None and self._kept_bytes(cells) + hidden > memory_bytes
        self.checkpoint = None if checkpoint is None else Checkpoint(checkpoint, self._key(cells))
        self.dense = self._track(DENSE, None, DEFAULT_TARGETS)
        self.dense_cells = [cell for cell in cells if cell.is_dense]
        self.combinations = self._combinations([cell for cell in cells if not cell.is_dense])

    # -- setting up -------------------------------------------------------------------------------------------

    def _key(self, cells: Sequence[Cell]) -> list[object]:
        """Everything that decides what a saved state holds."""
        digests = sorted(text.digest for text in self.calibrations.values())
        ids = sorted(cell.cell_id for cell in cells)
        versions = [__version__, torch.__version__, transformers_version, torch.get_num_threads()]
        return [*ids, self.snapshot.digest, self.evaluation.digest, *digests, self.prompts is not None, *versions]

    def _hidden_bytes(self, cells: Sequence[Cell]) -> int:
        """Bytes that the hidden states of all streams would hold in memory."""
        width, dtype = self.structure.hidden, self.walk.dtype
        streams = 1 + len(cells) + len({cell.pruning for cell in cells})
        evaluation = HiddenStates.nbytes(self.lengths, width, dtype)
        texts = [
            self.calibrations[pruning.calibration].ids
            for pruning in {cell.pruning for cell in cells}
            if pruning.calibration is not None
        ]
        calibration = sum(HiddenStates.nbytes([len(window) for window in ids], width, dtype) for ids in texts)
        return streams * evaluation + calibration

    def _kept_bytes(self, cells: Sequence[Cell]) -> int:
        """Bytes of all weights that are kept for generation."""
        return 0 if self.prompts is None else sum(kept_tracks(self.structure, cells))

    def _hidden(self, lengths: list[int], name: str) -> HiddenStates:
        file = self.scratch / f"{name}.hidden" if self.spill_hidden else None
        return HiddenStates(lengths, self.structure.hidden, self.walk.dtype, self.cell.device, file)

    def _track(self, variant: str, cell: Cell | None, targets: tuple[str, ...], name: str = DENSE) -> Track:
        store = None
        if self.prompts is not None and (cell is not None or variant == DENSE):
            folder = self.scratch if self.checkpoint is None else self.checkpoint.folder
            keep = self.spill_weights or self.checkpoint is not None
            store = LayerStore(folder / f"{name}.layers" if keep else None)
        prunable = frozenset(p.name for p in self.structure.prunable(targets))
        return Track(variant, self._hidden(self.lengths, name), prunable, store, cell)

    def _combinations(self, cells: Sequence[Cell]) -> list[Combination]:
        grouped: dict[Pruning, list[Cell]] = {}
        for cell in cells:
            grouped.setdefault(cell.pruning, []).append(cell)
        combinations = []
        for number, (pruning, members) in enumerate(grouped.items()):
            method = None if pruning.is_dense else make_method(pruning)
            masked = next((cell for cell in members if cell.variant == MASKED), None)
            others = [cell for cell in members if cell.variant != MASKED]
            # The reference runs even if no cell of this job is masked: results must not depend on packing.
            tracks = [self._track(MASKED, masked, pruning.targets, f"{number}-{MASKED}")]
            tracks += [self._track(cell.variant, cell, pruning.targets, f"{number}-{cell.variant}") for cell in others]
            combination = Combination(pruning, method, self.structure.prunable(pruning.targets), tracks)
            if method is not None and method.wanted_statistics:
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
        self._learn()
        self._embed()
        for layer in range(self._resume(), self.structure.layers):
            self.progress("layers", layer, self.structure.layers)
            self._layer(layer)
            return_freed_memory()
            if self.checkpoint is not None:
                self.checkpoint.save(layer, self.dense, self.combinations)
        self.progress("layers", self.structure.layers, self.structure.layers)
        self._outside()
        behaviour = Behaviour(self.walk, self.dense, self.combinations, self.outside, self.progress)
        rows = behaviour.windows(self.evaluation)
        self._floor(rows[id(self.dense)])
        free = None if self.memory_bytes is None else self.memory_bytes // 2
        continuations = behaviour.continuations(self.prompts, self.plain, free)
        self._report(finished, rows, continuations)
        if self.checkpoint is not None:
            self.checkpoint.discard()

    def _floor(self, rows: list[Measurement]) -> None:
        """Let the dense model read some windows again, where its cell is one of this job's."""
        if any(cell.is_dense for cell in self.dense_cells):
            with self.dense.clock.phase("evaluate"):
                rows += measure_floor(self.walk, self.dense.hidden, self.evaluation, self.progress)

    def _resume(self) -> int:
        """First layer to do: 0, or the one after the last that a killed job finished."""
        if self.checkpoint is None:
            return 0
        # Methods may have given a bias to linears that had none.
        added = [bias_parameter(p) for p in self.structure.parameters if p.kind == "linear"]
        parameters = {p.name: p for p in (*added, *self.structure.parameters)}
        first = self.checkpoint.restore(self.dense, self.combinations, parameters)
        for layer in range(first):
            names = [p.name for p in self.structure.in_layer(layer) if p.kind != "linear"]
            self.plain.append(self.walk.read(names))
        return first

    def close(self) -> None:
        """Free hidden states and their files."""
        self.dense.hidden.close()
        for combination in self.combinations:
            for track in combination.tracks:
                track.hidden.close()
            if combination.calibration is not None:
                combination.calibration.close()

    def _survey(self) -> None:
        """Let methods that rank across layers look at all weights, one at a time."""
        by_kind: dict[tuple[str, tuple[str, ...]], list[Combination]] = {}
        for combination in self.combinations:
            if combination.method is not None:
                pruning = combination.pruning
                by_kind.setdefault((pruning.method, pruning.targets), []).append(combination)
        for done, ((method, _), combinations) in enumerate(by_kind.items()):
            self.progress("survey", done, len(by_kind))
            try:
                with combinations[0].clock.phase("prune"):
                    METHODS.get(method).survey_all(
                        [c.method for c in combinations if c.method is not None],
                        combinations[0].parameters,
                        lambda name: self.walk.read([name])[name],
                    )
            except Exception as error:  # noqa: BLE001 - kept, and reported for its cells
                for combination in combinations:
                    combination.fail(error)

    def _learn(self) -> None:
        """Let methods that look at the dense model's calibration stream do so: one walk for each text."""
        waiting: dict[Calibration, list[tuple[Combination, Method]]] = {}
        for combination in self.combinations:
            method, calibration = combination.method, combination.pruning.calibration
            if method is not None and calibration is not None and method.dense_statistics is not None:
                waiting.setdefault(calibration, []).append((combination, method))
        for calibration, pairs in waiting.items():
            clock = pairs[0][0].clock
            with clock.phase("prune"):
                try:
                    with clock.phase("calibrate"):
                        survey = self._dense_survey(calibration, pairs)
                except Exception as error:  # noqa: BLE001 - kept, and reported for its cells
                    for combination, _ in pairs:
                        combination.fail(error)
                    continue
                for combination, method in pairs:
                    try:
                        method.learn(combination.parameters, lambda name: self.walk.read([name])[name], survey)
                    except Exception as error:  # noqa: BLE001 - kept, and reported for its cells
                        combination.fail(error)

    def _dense_survey(self, calibration: Calibration, pairs: Sequence[tuple[Combination, Method]]) -> DenseSurvey:
        """What the dense model's walk over one calibration text finds for some combinations."""
        text = self.calibrations[calibration]
        wanted = {p.name for combination, _ in pairs for p in combination.parameters}
        statistics = {name for _, method in pairs for name in method.dense_statistics or ()}
        hidden = self._hidden([len(window) for window in text.ids], "dense-calibration")
        try:
            return dense_survey(self.walk, text, hidden, wanted, sorted(statistics), self.progress)
        finally:
            hidden.close()

    def _embed(self) -> None:
        with self.clock.phase("load"):
            outside = self.walk.load_outside()
        plain = [c for c in self.combinations if not c.embeddings]
        self._embed_windows([self.dense, *(track for c in plain for track in c.open_tracks)])
        for combination in self.combinations:
            try:
                if combination.embeddings:
                    combination.outside = combination.prune(combination.embeddings, outside, {})
                    for p in self.structure.outside_layers:
                        if p.tied_to in combination.outside:
                            combination.outside[p.name] = combination.outside[p.tied_to]
                    self.walk.fill(combination.outside)
                    self._embed_windows(combination.open_tracks)
                if combination.calibration is not None and combination.pruning.calibration is not None:
                    for window, array in enumerate(self.calibrations[combination.pruning.calibration].ids):
                        combination.calibration[window], _ = self.walk.embed(torch.from_numpy(array)[None])
            except Exception as error:  # noqa: BLE001 - kept, and reported for its cells
                combination.fail(error)
            finally:
                self.walk.fill({name: outside[name] for name in combination.outside})
        self.walk.unload_outside()

    def _embed_windows(self, tracks: Sequence[Track]) -> None:
        for batch in self.batches:
            hidden, _ = self.walk.embed(torch.stack([self.ids[window] for window in batch]))
            for track in tracks:
                for row, window in enumerate(batch):
                    track.hidden[window] = hidden[row : row + 1]

    def _layer(self, layer: int) -> None:
        parameters = self.structure.in_layer(layer)
        with self.clock.phase("load"):
            tensors = self.walk.load(layer)
        linears = {p.name for p in parameters if p.kind == "linear"}
        plain = {name: tensor for name, tensor in tensors.items() if name not in linears}
        dense = {name: FORMATS.get(DENSE).encode(tensors[name]) for name in linears}
        self.plain.append(plain)
        self.dense.account(parameters, tensors, {})
        wanted = {p.name: tensors[p.name] for c in self.combinations for p in c.in_layer(layer)}
        with sampled(self.walk, wanted, sum(self.lengths)) as samples:
            self.dense.run(self.walk, layer, self.batches)
        if self.dense.store is not None:
            self.dense.store.put(layer, DENSE, dense)
        for combination in self.combinations:
            try:
                self._combination(combination, layer, tensors, linears, samples)
            except Exception as error:  # noqa: BLE001 - kept, and reported for its cells
                combination.fail(error)
            self.walk.install(dense)
        self.walk.unload(layer)

    def _combination(
        self,
        combination: Combination,
        layer: int,
        tensors: Mapping[str, torch.Tensor],
        linears: set[str],
        samples: Mapping[str, Sample],
    ) -> None:
        """Prune one layer for one combination and run its tracks; the walk holds the layer's dense weights."""
        if not combination.open_tracks:
            return
        with combination.clock.phase("prune"):
            pruned = combination.prune_layer(self.walk, layer, tensors)
        parameters, biases = combination.biased(self.structure.in_layer(layer), tensors)
        present = {**tensors, **pruned, **biases}
        changes = {} if combination.method is None else combination.method.bias_changes
        errors = output_errors(samples, pruned, changes)
        for track in combination.open_tracks:
            try:
                stored = track.encode(pruned, combination.pruning.pattern, self.walk)
                self.walk.install(stored)
                with combination.own_biases(self.walk, layer):
                    track.run(self.walk, layer, self.batches)
                lossless = FORMATS.get(track.variant).lossless
                used = {} if lossless else {name: storage.decode() for name, storage in stored.items()}
                own = errors if lossless else output_errors(samples, used, changes)
                track.account(parameters, present, stored, own)
            except Exception as error:  # noqa: BLE001 - kept, and reported as this cell's failure
                track.error = error
                continue
            if track.store is not None:
                kept = {name: stored.get(name) or FORMATS.get(DENSE).encode(tensors[name]) for name in linears}
                track.store.put(layer, track.variant, kept)

    def _outside(self) -> None:
        """Load what lies outside the layers, prune the heads that are targets, and count it all."""
        parameters = self.structure.outside_layers
        with self.clock.phase("load"):
            self.outside = self.walk.load_outside()
        self.dense.account(parameters, self.outside, {})
        for combination in self.combinations:
            try:
                # A tied head that is no target follows the pruned embedding.
                self.walk.fill(combination.outside)
                with combination.clock.phase("prune"):
                    statistics = combination.head_statistics(self.walk) if combination.heads else {}
                    heads = combination.prune(combination.heads, self.outside, statistics)
                for track in combination.open_tracks:
                    self._store_head(combination, track, heads)
            except Exception as error:  # noqa: BLE001 - kept, and reported for its cells
                combination.fail(error)
            finally:
                self.walk.fill({name: self.outside[name] for name in combination.outside})

    def _store_head(self, combination: Combination, track: Track, heads: Mapping[str, torch.Tensor]) -> None:
        try:
            combination.store_head(track, heads, self.walk)
            present = {**self.outside, **combination.outside, **heads}
            track.account(self.structure.outside_layers, present, track.head)
        except Exception as error:  # noqa: BLE001 - kept, and reported as this cell's failure
            track.error = error

    def _report(
        self,
        finished: Finished,
        rows: Mapping[int, list[Measurement]],
        continuations: Iterator[tuple[Track, Combination | None, torch.Tensor | None]],
    ) -> None:
        """Hand over every cell as soon as its figures are complete; the dense track comes first."""
        dense_s, dense_tokens = self.dense.clock["evaluate"], None
        for track, combination, tokens in continuations:
            if combination is None:
                dense_s, dense_tokens = self.dense.clock["evaluate"], tokens
            cells = self.dense_cells if combination is None else [] if track.cell is None else [track.cell]
            for cell in cells:
                if track.error is not None:
                    finished(cell, track.error)
                    continue
                found = rows[id(track)]
                finished(cell, self.results.result(cell, track, combination, dense_s, found, dense_tokens, tokens))

"""Run cells of one model: a walk over its layers in plain order, rows of figures out.

For every decoder layer: read it, run the dense stream; for every combination collect statistics on the calibration
stream through the unpruned layer, prune, run the calibration stream through the pruned layer; for every variant store
the pruned weights and run its evaluation stream through that storage; drop the layer. Then norm and head, window by
window, and greedy generation. A model is never loaded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsehpc.behaviour import Behaviour
from sparsehpc.combinations import Combination, dense_norms
from sparsehpc.core.errors import CellError, SparseHPCError
from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import DEFAULT_TARGETS, DENSE, Calibration, Cell, Pruning
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.hidden import HiddenStates
from sparsehpc.models.spool import LayerStore
from sparsehpc.models.stream import LayerWalk
from sparsehpc.pruning.allocation import allocate
from sparsehpc.pruning.base import METHODS, make_method
from sparsehpc.results import CellResult, Results
from sparsehpc.tracks import Clock, Track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.text.windows import TokenWindows

#: Variant whose storage is a plain tensor with zeros: what other variants' choices are compared with.
MASKED = "masked"


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
        self.plain: list[dict[str, torch.Tensor]] = []
        self.outside: dict[str, torch.Tensor] = {}
        self.memory_bytes = memory_bytes
        hidden = self._hidden_bytes(cells)
        self.spill_hidden = memory_bytes is not None and hidden > memory_bytes // 2
        self.spill_weights = memory_bytes is not None and self._kept_bytes(cells) + hidden > memory_bytes
        self.dense = self._track(DENSE, None, DEFAULT_TARGETS)
        self.dense_cells = [cell for cell in cells if cell.is_dense]
        self.combinations = self._combinations([cell for cell in cells if not cell.is_dense])

    # -- setting up -------------------------------------------------------------------------------------------

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
        """Bytes of all weights that are kept for generation; a CSR copy takes up to three times the dense ones."""
        if self.prompts is None:
            return 0
        return 3 * (1 + len(cells)) * self.structure.params_total * self.walk.dtype.itemsize

    def _hidden(self, lengths: list[int], name: str) -> HiddenStates:
        file = self.scratch / f"{name}.hidden" if self.spill_hidden else None
        return HiddenStates(lengths, self.structure.hidden, self.walk.dtype, self.cell.device, file)

    def _track(self, variant: str, cell: Cell | None, targets: tuple[str, ...], name: str = DENSE) -> Track:
        store = None
        if self.prompts is not None and (cell is not None or variant == DENSE):
            store = LayerStore(self.scratch / f"{name}.layers" if self.spill_weights else None)
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
            if method is not None and method.needs_calibration(pruning.allocation, pruning.refit):
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
        self._outside()
        behaviour = Behaviour(self.walk, self.dense, self.combinations, self.outside, self.progress)
        rows = behaviour.windows(self.evaluation)
        free = None if self.memory_bytes is None else self.memory_bytes // 2
        tokens = {} if self.prompts is None else behaviour.continuations(self.prompts, self.plain, free)
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
            if combination.method is not None:
                pruning = combination.pruning
                by_kind.setdefault((pruning.method, pruning.targets), []).append(combination)
        for done, ((method, _), combinations) in enumerate(by_kind.items()):
            self.progress("survey", done, len(by_kind))
            with combinations[0].clock.phase("prune"):
                METHODS.get(method).survey_all(
                    [c.method for c in combinations if c.method is not None],
                    combinations[0].parameters,
                    lambda name: self.walk.read([name])[name],
                )

    def _allocate(self) -> None:
        """Spread budgets over layers where that takes a look at the dense model's calibration stream first."""
        waiting: dict[Calibration, list[Combination]] = {}
        for combination in self.combinations:
            pruning, method = combination.pruning, combination.method
            if method is None or pruning.calibration is None:
                continue
            if pruning.allocation in method.learned_allocations:
                waiting.setdefault(pruning.calibration, []).append(combination)
        for calibration, combinations in waiting.items():
            with combinations[0].clock.phase("prune"):
                norms = self._dense_norms(calibration, {p.name for c in combinations for p in c.parameters})
                for combination in combinations:
                    if combination.method is None:
                        continue
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
        text = self.calibrations[calibration]
        hidden = self._hidden([len(window) for window in text.ids], "dense-calibration")
        try:
            return dense_norms(self.walk, text, hidden, wanted, self.progress)
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
            except CellError as error:
                combination.fail(error)
            finally:
                self.walk.fill({name: outside[name] for name in combination.outside})
        self.walk.unload_outside()

    def _embed_windows(self, tracks: Sequence[Track]) -> None:
        for window, ids in enumerate(self.ids):
            hidden, _ = self.walk.embed(ids[None])
            for track in tracks:
                track.hidden[window] = hidden

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
            pruned = combination.prune(combination.in_layer(layer), tensors, statistics)
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
                    combination.store_head(track, heads)
                    track.account(parameters, {**self.outside, **combination.outside, **heads}, track.head)
            except CellError as error:
                combination.fail(error)
            finally:
                self.walk.fill({name: self.outside[name] for name in combination.outside})

    def _report(
        self, finished: Finished, rows: Mapping[int, list[Measurement]], tokens: Mapping[int, torch.Tensor]
    ) -> None:
        dense_s, dense_tokens = self.dense.clock["evaluate"], tokens.get(id(self.dense))
        for cell in self.dense_cells:
            found = rows[id(self.dense)]
            result = self.results.result(cell, self.dense, None, dense_s, found, dense_tokens, dense_tokens)
            finished(cell, result)
        for combination in self.combinations:
            for track in combination.tracks:
                if track.cell is None:
                    continue
                if track.error is not None:
                    finished(track.cell, track.error)
                    continue
                found, made = rows[id(track)], tokens.get(id(track))
                result = self.results.result(track.cell, track, combination, dense_s, found, dense_tokens, made)
                finished(track.cell, result)

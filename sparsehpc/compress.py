"""Prune one model and store it, section by section: no study, no evaluation, one decoder layer in memory.

The walk is that of the pipeline: statistics of a layer come from the calibration stream through the unpruned layer,
the stream then goes on through the pruned one.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsehpc.combinations import Combination, dense_survey
from sparsehpc.core.errors import UserError
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.assemble import Section
from sparsehpc.models.hidden import HiddenStates
from sparsehpc.models.stream import LayerWalk
from sparsehpc.pruning.base import METHODS, make_method

if TYPE_CHECKING:
    from sparsehpc.core.spec import Pruning
    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.models.structure import Parameter
    from sparsehpc.text.windows import TokenWindows

Progress = Callable[[str, int, int], None]

#: Hidden states of the calibration text larger than this go to the scratch disk.
_MEMORY_BYTES = 2 << 30


class Compression:
    """One model on its way from dense to pruned and stored.

    Parameters
    ----------
    snapshot
        The model.
    pruning
        How weights are removed; with method ``none`` they are stored as they are.
    variant
        Format of the pruned linears.
    dtype, device
        Type of weights and activations, and where the walk runs.
    calibration
        Windows for methods that learn from text.
    progress
        Called with a stage, steps done and steps in all.

    Attributes
    ----------
    notes
        What the method recorded, by weight name; complete once `sections` has ended.

    Raises
    ------
    UserError
        The combination cannot be on this model, or calibration text is missing.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        pruning: Pruning,
        variant: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        calibration: TokenWindows | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.snapshot, self.pruning, self.variant = snapshot, pruning, variant
        self.dtype, self.device, self.calibration = dtype, device, calibration
        self.structure = snapshot.structure
        self.progress: Progress = progress or (lambda stage, done, total: None)
        self.notes: dict[str, Any] = {}
        self.method = None if pruning.is_dense else make_method(pruning)
        self.parameters = self.structure.prunable(pruning.targets)
        check_combination(snapshot.model, pruning, variant, dtype, self.parameters)
        self._calibrates = self.method is not None and self.method.needs_calibration(pruning.allocation, pruning.refit)
        if self._calibrates and calibration is None:
            raise UserError(f"method {pruning.method!r} needs calibration text", "--calibration-corpus names one")

    def sections(self) -> Iterator[Section]:
        """Every decoder layer in order, then what lies outside; each is computed when it is asked for."""
        with contextlib.ExitStack() as stack:
            walk = LayerWalk(self.snapshot, self.dtype, self.device)
            combination = Combination(self.pruning, self.method, self.parameters, [])
            if self._calibrates and self.calibration is not None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sparsehpc-scratch-")))
                if self.method is not None and self.method.wanted_statistics:
                    lengths = [len(window) for window in self.calibration.ids]
                    combination.calibration_tokens = lengths
                    combination.calibration = self._hidden(lengths, walk, scratch / "calibration")
                    stack.callback(combination.calibration.close)
                with torch.inference_mode():
                    self._learn(walk, scratch / "dense")
            elif self.method is not None:
                self._survey(walk)
            yield from self._walk(walk, combination)
            self.notes = combination.notes

    # -- before the walk --------------------------------------------------------------------------------------

    def _hidden(self, lengths: Sequence[int], walk: LayerWalk, file: Path) -> HiddenStates:
        sizes = list(lengths)
        size = HiddenStates.nbytes(sizes, self.structure.hidden, walk.dtype)
        spilled = file if size > _MEMORY_BYTES else None
        return HiddenStates(sizes, self.structure.hidden, walk.dtype, self.device, spilled)

    def _read(self, walk: LayerWalk) -> Callable[[str], torch.Tensor]:
        return lambda name: walk.read([name])[name]

    def _survey(self, walk: LayerWalk) -> None:
        if self.method is not None:
            self.progress("survey", 0, 1)
            METHODS.get(self.pruning.method).survey_all([self.method], self.parameters, self._read(walk))

    def _learn(self, walk: LayerWalk, file: Path) -> None:
        """Survey, and show the dense model's calibration stream to a method that decides by it."""
        self._survey(walk)
        method, text = self.method, self.calibration
        if method is None or text is None or method.dense_statistics is None:
            return
        hidden = self._hidden([len(window) for window in text.ids], walk, file)
        try:
            wanted = {p.name for p in self.parameters}
            survey = dense_survey(walk, text, hidden, wanted, method.dense_statistics, self.progress)
        finally:
            hidden.close()
        method.learn(self.parameters, self._read(walk), survey)

    # -- the walk ---------------------------------------------------------------------------------------------

    def _walk(self, walk: LayerWalk, combination: Combination) -> Iterator[Section]:
        outside = self._embed(walk, combination)
        for layer in range(self.structure.layers):
            self.progress("layers", layer, self.structure.layers)
            with torch.inference_mode():
                section = self._layer(walk, combination, layer)
            yield section
            del section
        self.progress("layers", self.structure.layers, self.structure.layers)
        with torch.inference_mode():
            section = self._outside(walk, combination, outside)
        yield section

    def _embed(self, walk: LayerWalk, combination: Combination) -> dict[str, torch.Tensor]:
        """Pruned embeddings; the calibration stream starts through them."""
        with torch.inference_mode():
            tensors = walk.load_outside()
            pruned = combination.prune(combination.embeddings, tensors, {}) if combination.embeddings else {}
            for parameter in self.structure.outside_layers:
                if parameter.tied_to in pruned:
                    pruned[parameter.name] = pruned[parameter.tied_to]
            walk.fill(pruned)
            if combination.calibration is not None and self.calibration is not None:
                for window, ids in enumerate(self.calibration.ids):
                    combination.calibration[window], _ = walk.embed(torch.from_numpy(ids)[None])
            walk.unload_outside()
        return pruned

    def _layer(self, walk: LayerWalk, combination: Combination, layer: int) -> Section:
        tensors = walk.load(layer)
        pruned = combination.prune_layer(walk, layer, tensors)
        walk.unload(layer)
        _, biases = combination.biased(self.structure.in_layer(layer), tensors)
        return self._section(walk, layer, {**tensors, **biases}, pruned)

    def _outside(self, walk: LayerWalk, combination: Combination, embeddings: Mapping[str, torch.Tensor]) -> Section:
        dense = walk.load_outside()
        walk.fill(embeddings)  # a tied head that is no target follows the pruned embedding
        statistics = combination.head_statistics(walk) if combination.heads else {}
        pruned = combination.prune(combination.heads, dense, statistics)
        walk.unload_outside()
        tied = {p.name for p in self.structure.outside_layers if p.tied_to is not None and p.name not in pruned}
        tensors = {name: embeddings.get(name, tensor) for name, tensor in dense.items() if name not in tied}
        return self._section(walk, None, tensors, pruned)

    def _section(
        self,
        walk: LayerWalk,
        layer: int | None,
        tensors: Mapping[str, torch.Tensor],
        pruned: Mapping[str, torch.Tensor],
    ) -> Section:
        storage = FORMATS.get(self.variant)
        stored = {
            name: storage.encode_on(weight, self.pruning.pattern, walk.grid(name) if storage.uses_grid else None)
            for name, weight in pruned.items()
        }
        plain = {name: tensor for name, tensor in tensors.items() if name not in stored}
        return Section(layer, plain, stored, {name: storage.chosen(item) for name, item in stored.items()})


def check_combination(model: str, pruning: Pruning, variant: str, dtype: str, parameters: Sequence[Parameter]) -> None:
    """Raise `UserError` where the method or the format cannot serve the model's weights."""
    if not pruning.is_dense and (reason := METHODS.get(pruning.method).unsupported(pruning, parameters)):
        raise UserError(f"method {pruning.method!r} cannot prune {model}: {reason}")
    storage = FORMATS.get(variant)
    for parameter in parameters:
        if parameter.kind == "linear":
            rows, columns = parameter.shape
            if reason := storage.unsupported(rows, columns, dtype, pruning.pattern):
                raise UserError(f"format {variant!r} cannot store {parameter.name}: {reason}")

"""What runs through the layer walk: evaluation tracks of cells, and combinations that prune for them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sparsehpc.core.errors import CellError
from sparsehpc.formats.base import FORMATS
from sparsehpc.metrics.base import TensorView
from sparsehpc.pruning.base import Method, Site, Statistic
from sparsehpc.pruning.statistics import collector

if TYPE_CHECKING:
    from sparsehpc.core.spec import Cell, Pruning
    from sparsehpc.formats.base import Stored
    from sparsehpc.models.hidden import HiddenStates
    from sparsehpc.models.spool import LayerStore
    from sparsehpc.models.stream import LayerWalk
    from sparsehpc.models.structure import Parameter


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def __getitem__(self, name: str) -> float:
        return self.seconds.get(name, 0.0)


@dataclasses.dataclass(slots=True)
class Track:
    """One evaluation stream: a cell's pruned weights, stored in its variant, run over the evaluation windows.

    Parameters
    ----------
    variant
        Storage format.
    hidden
        Hidden states of the windows.
    prunable
        Names of the weights that sparsity is a fraction of.
    store
        Keeps the stored weights for generation; None where the track generates nothing.
    cell
        The cell that is measured; None for the masked reference that other variants are compared with.
    """

    variant: str
    hidden: HiddenStates
    prunable: frozenset[str]
    store: LayerStore | None = None
    cell: Cell | None = None
    tensors: list[TensorView] = dataclasses.field(default_factory=list)
    kernels: set[str] = dataclasses.field(default_factory=set)
    clock: Clock = dataclasses.field(default_factory=Clock)
    error: CellError | None = None

    def encode(self, weights: Mapping[str, torch.Tensor], pattern: str) -> dict[str, Stored]:
        """Store pruned weights in the track's format."""
        storage = FORMATS.get(self.variant)
        with self.clock.phase("encode"):
            return {name: storage.encode(weight, pattern) for name, weight in weights.items()}

    def account(
        self, parameters: Sequence[Parameter], tensors: Mapping[str, torch.Tensor], stored: Mapping[str, Stored]
    ) -> None:
        """Count zeros, bytes and FLOPs of one section of the model.

        Parameters
        ----------
        parameters
            Parameters of the section.
        tensors
            Its tensors as they are used, pruned ones with zeros in place.
        stored
            Storage of the pruned ones.
        """
        for parameter in parameters:
            storage = stored.get(parameter.name)
            if storage is not None:
                self.kernels.add(storage.kernel)
            prunable = parameter.name in self.prunable
            self.tensors.append(tensor_view(parameter, tensors[parameter.name], storage, prunable))

    def run(self, walk: LayerWalk, layer: int, lengths: Sequence[int]) -> None:
        """Run the layer's present weights over all windows, in place."""
        with self.clock.phase("evaluate"):
            for window, tokens in enumerate(lengths):
                hidden = walk.run(layer, self.hidden[window], walk.call(tokens))
                if not bool(torch.isfinite(hidden).all()):
                    raise CellError(f"layer {layer}: hidden states of window {window} hold NaN or Inf")
                self.hidden[window] = hidden


def tensor_view(parameter: Parameter, tensor: torch.Tensor, storage: Stored | None, prunable: bool) -> TensorView:
    """Count one tensor: its non-zeros, and what its storage (or the plain tensor) holds and executes."""
    if storage is not None:
        component_bytes, flops = storage.component_bytes(), storage.flops_per_token
    else:
        # The weights that other variants store in a format are called the same here, so that sizes stack alike.
        component = "values" if prunable else "bias" if parameter.kind == "bias" else "weight"
        component_bytes = {component: tensor.numel() * tensor.element_size()}
        flops = 2 * tensor.numel() if parameter.kind == "linear" else 0
    return TensorView(
        parameter=parameter,
        prunable=prunable,
        numel=parameter.numel,
        nonzeros=int(torch.count_nonzero(tensor)),
        component_bytes=component_bytes,
        flops_executed=flops,
    )


def collect(
    walk: LayerWalk,
    layer: int,
    hidden: HiddenStates,
    lengths: Sequence[int],
    wanted: Collection[str],
    statistics: Sequence[Statistic],
    *,
    advance: bool = False,
) -> dict[str, dict[str, torch.Tensor]]:
    """Statistics of the inputs of a layer's linears, from one stream through the weights that it now holds.

    Linears that read the same tensor (q/k/v, gate/up) share one accumulator.

    Parameters
    ----------
    walk, layer
        The layer, loaded.
    hidden, lengths
        What enters it, one window after the other, and their tokens.
    wanted
        Names of the weights.
    statistics
        What to accumulate.
    advance
        Put what leaves the layer into ``hidden``.
    """
    leaders: dict[str, str] = {}
    collectors: dict[str, Any] = {}
    for window, tokens in enumerate(lengths):
        seen: list[tuple[torch.Tensor, str]] = []

        def observe(name: str, x: torch.Tensor, seen: list[tuple[torch.Tensor, str]] = seen) -> None:
            if name not in wanted:
                return
            for earlier, leader in seen:
                if earlier is x:
                    leaders[name] = leader
                    return
            seen.append((x, name))
            leaders[name] = name
            if name not in collectors:
                collectors[name] = collector(statistics, x.shape[-1], x.device)
            collectors[name].add(x.reshape(-1, x.shape[-1]), name)

        with walk.observing(layer, observe):
            output = walk.run(layer, hidden[window], walk.call(tokens))
        if advance:
            hidden[window] = output
    results = {name: found.result() for name, found in collectors.items()}
    return {name: results[leader] for name, leader in leaders.items()}


@dataclasses.dataclass(slots=True)
class Combination:
    """One `Pruning` and the tracks that store and evaluate its weights.

    Parameters
    ----------
    pruning, method
        What is done to the weights.
    parameters
        Prunable parameters in module order.
    tracks
        Evaluation streams, the masked reference first.
    calibration
        Hidden states of the calibration windows, for methods that need them.
    calibration_tokens
        Tokens of each calibration window.
    """

    pruning: Pruning
    method: Method
    parameters: Sequence[Parameter]
    tracks: list[Track]
    calibration: HiddenStates | None = None
    calibration_tokens: Sequence[int] = ()
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    clock: Clock = dataclasses.field(default_factory=Clock)

    @property
    def open_tracks(self) -> list[Track]:
        """Tracks that have not failed."""
        return [track for track in self.tracks if track.error is None]

    def fail(self, error: CellError) -> None:
        """Let every track of the combination fail for the same reason."""
        for track in self.open_tracks:
            track.error = error

    def statistics(self, walk: LayerWalk, layer: int) -> dict[str, dict[str, torch.Tensor]]:
        """Statistics of the inputs of every prunable linear of a layer, from the calibration stream.

        The layer holds its unpruned weights; its inputs come from the pruned layers before it. Linears that read
        the same tensor (q/k/v, gate/up) share one accumulator.
        """
        if self.calibration is None:
            return {}
        wanted = {p.name for p in self.parameters if p.layer == layer}
        return collect(walk, layer, self.calibration, self.calibration_tokens, wanted, self.method.wanted_statistics)

    def prune(
        self, layer: int, tensors: Mapping[str, torch.Tensor], statistics: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Pruned weights of one layer by name."""
        pruned = {}
        for index, parameter in enumerate(self.parameters):
            if parameter.layer != layer:
                continue
            result = self.method.apply(
                tensors[parameter.name], Site(parameter, index), statistics.get(parameter.name, {})
            )
            pruned[parameter.name] = result.weight
            if result.notes:
                self.notes[parameter.name] = result.notes
        return pruned

    def advance_calibration(self, walk: LayerWalk, layer: int) -> None:
        """Run the pruned layer over the calibration stream."""
        if self.calibration is None:
            return
        for window, tokens in enumerate(self.calibration_tokens):
            self.calibration[window] = walk.run(layer, self.calibration[window], walk.call(tokens))

"""Combinations: one way of pruning a model, and the tracks that store and evaluate its weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sparsehpc.core.errors import CellError
from sparsehpc.core.machine import return_freed_memory
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.structure import bias_name, bias_parameter
from sparsehpc.pruning.base import DenseSurvey, Method, Site, Statistic
from sparsehpc.pruning.statistics import collector
from sparsehpc.tracks import Clock, Track

if TYPE_CHECKING:
    import torch

    from sparsehpc.core.spec import Pruning
    from sparsehpc.models.hidden import HiddenStates
    from sparsehpc.models.stream import LayerWalk
    from sparsehpc.models.structure import Parameter
    from sparsehpc.text.windows import TokenWindows

Statistics = dict[str, dict[str, "torch.Tensor"]]


def collect(
    walk: LayerWalk,
    wanted: Collection[str],
    windows: int,
    step: Callable[[int], object],
    statistics: Sequence[Statistic],
) -> Statistics:
    """Statistics of the inputs of some linears while windows run through the weights that they now hold.

    Linears that read the same tensor (q/k/v, gate/up) share one accumulator.

    Parameters
    ----------
    walk
        The walk, with the linears' section loaded.
    wanted
        Names of the weights.
    windows, step
        How many windows, and what runs one of them.
    statistics
        What to accumulate.
    """
    leaders: dict[str, str] = {}
    collectors: dict[str, Any] = {}
    for window in range(windows):
        # Inputs are held while the window runs, so that an identity is never that of a freed tensor.
        seen: list[tuple[torch.Tensor, str]] = []

        def observe(name: str, x: torch.Tensor, seen: list[tuple[torch.Tensor, str]] = seen) -> None:
            for earlier, leader in seen:
                if earlier is x:
                    leaders[name] = leader
                    return
            seen.append((x, name))
            leaders[name] = name
            if name not in collectors:
                collectors[name] = collector(statistics, x.shape[-1], x.device)
            collectors[name].add(x.reshape(-1, x.shape[-1]), name)

        with walk.observing(wanted, observe):
            step(window)
    results = {name: found.result() for name, found in collectors.items()}
    return {name: results[leader] for name, leader in leaders.items()}


def dense_survey(
    walk: LayerWalk,
    text: TokenWindows,
    hidden: HiddenStates,
    wanted: Collection[str],
    statistics: Sequence[Statistic],
    progress: Callable[[str, int, int], None],
) -> DenseSurvey:
    """Input statistics of the dense model's linears, and every layer's influence, over one calibration text.

    Parameters
    ----------
    walk
        The walk; it holds no weights afterwards.
    text
        Calibration windows.
    hidden
        Room for their hidden states; overwritten.
    wanted
        Names of the weights; those outside decoder layers are passed over.
    statistics
        What to accumulate.
    progress
        Called with a stage, steps done and steps in all.
    """
    import torch

    lengths = [len(window) for window in text.ids]
    inputs: Statistics = {}
    influence: dict[int, float] = {}
    walk.load_outside()
    for window, array in enumerate(text.ids):
        hidden[window], _ = walk.embed(torch.from_numpy(array)[None])
    walk.unload_outside()
    for layer in range(walk.structure.layers):
        progress("dense calibration", layer, walk.structure.layers)
        walk.load(layer)
        names = [p.name for p in walk.structure.in_layer(layer) if p.name in wanted]
        cosines: list[torch.Tensor] = []

        def step(window: int, layer: int = layer, cosines: list[torch.Tensor] = cosines) -> None:
            before = hidden[window]
            after = walk.run(layer, before, walk.call(lengths[window]))
            cosines.append(torch.cosine_similarity(before.double(), after.double(), dim=-1).sum())
            hidden[window] = after

        inputs |= collect(walk, names, len(lengths), step, statistics)
        influence[layer] = 1 - float(torch.stack(cosines).sum()) / sum(lengths)
        if not math.isfinite(influence[layer]):
            raise CellError(f"layer {layer} of the dense model gives NaN or Inf on the calibration text")
        walk.unload(layer)
        return_freed_memory()
    return DenseSurvey(inputs, influence)


@dataclasses.dataclass(slots=True)
class Combination:
    """One `Pruning` and the tracks that store and evaluate its weights.

    Parameters
    ----------
    pruning
        What is done to the weights.
    method
        Who does it; None where nothing is pruned and the tracks only store (``dense-int8``, ...).
    parameters
        Prunable parameters in module order.
    tracks
        Evaluation streams, the masked reference first.
    calibration
        Hidden states of the calibration windows, for methods that need them.
    calibration_tokens
        Tokens of each calibration window.
    outside
        Pruned embeddings, and heads tied to them; empty where they stay as they are.
    """

    pruning: Pruning
    method: Method | None
    parameters: Sequence[Parameter]
    tracks: list[Track]
    calibration: HiddenStates | None = None
    calibration_tokens: Sequence[int] = ()
    outside: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    clock: Clock = dataclasses.field(default_factory=Clock)

    @property
    def open_tracks(self) -> list[Track]:
        """Tracks that have not failed."""
        return [track for track in self.tracks if track.error is None]

    def fail(self, error: Exception) -> None:
        """Let every track of the combination fail for the same reason."""
        for track in self.open_tracks:
            track.error = error

    def in_layer(self, layer: int | None) -> list[Parameter]:
        """Prunable parameters of one decoder layer, or outside all of them."""
        return [p for p in self.parameters if p.layer == layer]

    @property
    def embeddings(self) -> list[Parameter]:
        """Prunable embeddings."""
        return [p for p in self.in_layer(None) if p.kind == "embedding"]

    @property
    def heads(self) -> list[Parameter]:
        """Prunable output heads."""
        return [p for p in self.in_layer(None) if p.kind == "linear"]

    def prune_layer(self, walk: LayerWalk, layer: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pruned weights of a decoder layer, by name; the calibration stream has then gone through them.

        Parameters
        ----------
        walk
            It holds the layer's dense weights; afterwards, where there is calibration text, the pruned ones.
        layer
            Decoder layer.
        tensors
            Its dense weights by name.
        """
        parameters = self.in_layer(layer)
        if not self.pruning.true_sequential:
            pruned = self.prune(parameters, tensors, self.statistics(walk, layer, parameters))
        else:
            pruned = {}
            for group in self._input_groups(walk, layer, parameters):
                found = self.prune(group, tensors, self.statistics(walk, layer, group))
                walk.install({name: FORMATS.get("masked").encode(weight) for name, weight in found.items()})
                pruned |= found
        self.advance_calibration(walk, layer, pruned)
        return {p.name: pruned[p.name] for p in parameters}

    def _input_groups(self, walk: LayerWalk, layer: int, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
        """Linears of a layer in the order they run, those that read the same tensor (q/k/v, gate/up) together."""
        if self.calibration is None:
            return [list(parameters)]
        by_name = {p.name: p for p in parameters}
        groups: list[tuple[torch.Tensor, list[Parameter]]] = []

        def observe(name: str, x: torch.Tensor) -> None:
            for earlier, members in groups:
                if earlier is x:
                    members.append(by_name[name])
                    return
            groups.append((x, [by_name[name]]))

        with walk.observing(by_name, observe):
            walk.run(layer, self.calibration[0], walk.call(self.calibration_tokens[0]))
        return [members for _, members in groups]

    def statistics(self, walk: LayerWalk, layer: int, parameters: Sequence[Parameter]) -> Statistics:
        """Statistics of the inputs of prunable linears of a layer, from the calibration stream.

        The inputs come from the pruned layers before it and from the weights that the layer now holds: unpruned ones,
        save for linears before these under ``true_sequential``.
        """
        hidden, lengths = self.calibration, self.calibration_tokens
        if hidden is None or self.method is None:
            return {}
        wanted = [p.name for p in parameters]
        with self.clock.phase("calibrate"):
            return collect(
                walk,
                wanted,
                len(lengths),
                lambda window: walk.run(layer, hidden[window], walk.call(lengths[window])),
                self.method.wanted_statistics,
            )

    def head_statistics(self, walk: LayerWalk) -> Statistics:
        """Statistics of the inputs of a prunable output head."""
        hidden = self.calibration
        if hidden is None or self.method is None:
            return {}
        wanted = [p.name for p in self.heads]
        wanted_statistics, windows = self.method.wanted_statistics, len(self.calibration_tokens)
        with self.clock.phase("calibrate"):
            return collect(walk, wanted, windows, lambda window: walk.head(hidden[window]), wanted_statistics)

    def prune(
        self, parameters: Sequence[Parameter], tensors: Mapping[str, torch.Tensor], statistics: Statistics
    ) -> dict[str, torch.Tensor]:
        """Pruned weights by name."""
        if self.method is None:
            return {p.name: tensors[p.name] for p in parameters}
        positions = {p.name: index for index, p in enumerate(self.parameters)}
        sites = [Site(p, positions[p.name]) for p in parameters]
        results = self.method.prune_section({p.name: tensors[p.name] for p in parameters}, sites, statistics)
        self.notes |= {name: result.notes for name, result in results.items() if result.notes}
        return {p.name: results[p.name].weight for p in parameters}

    def advance_calibration(self, walk: LayerWalk, layer: int, pruned: Mapping[str, torch.Tensor]) -> None:
        """Run the pruned layer over the calibration stream.

        Always from dense storage with zeros: a mask must not depend on how weights are stored.
        """
        if self.calibration is None:
            return
        walk.install({name: FORMATS.get("masked").encode(weight) for name, weight in pruned.items()})
        with self.clock.phase("calibrate"), self.own_biases(walk, layer):
            for window, tokens in enumerate(self.calibration_tokens):
                self.calibration[window] = walk.run(layer, self.calibration[window], walk.call(tokens))

    def own_biases(self, walk: LayerWalk, layer: int) -> AbstractContextManager[None]:
        """Let the layer's linears have the biases that the method gave them while the block runs."""
        changes = {} if self.method is None else self.method.bias_changes
        mine = {p.name: changes[p.name] for p in walk.structure.in_layer(layer) if p.name in changes}
        return walk.biases(mine) if mine else nullcontext()

    def biased(
        self, parameters: Sequence[Parameter], tensors: Mapping[str, torch.Tensor]
    ) -> tuple[list[Parameter], dict[str, torch.Tensor]]:
        """Parameters of a section with biases that the method added, and all biases it changed, by their names."""
        changes = {} if self.method is None else self.method.bias_changes
        every, biases = list(parameters), {}
        for parameter in parameters:
            if parameter.name not in changes:
                continue
            name, change = bias_name(parameter.name), changes[parameter.name]
            before = tensors.get(name)
            if before is not None:
                biases[name] = before.new_zeros(before.shape) if change is None else before + change
            elif change is not None:
                biases[name] = change
                every.append(bias_parameter(parameter))
        return every, biases

    @contextmanager
    def outside_layers(self, walk: LayerWalk, track: Track, dense: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Let embedding and head be the track's own while the block runs; ``dense`` is what they are otherwise."""
        if not self.outside and not track.head:
            yield
            return
        walk.fill(self.outside)
        walk.install(track.head)
        try:
            yield
        finally:
            walk.fill({name: dense[name] for name in (*self.outside, *track.head)})

    def store_head(self, track: Track, weights: Mapping[str, torch.Tensor], walk: LayerWalk) -> None:
        """Store a pruned head in the track's format."""
        track.head = track.encode(weights, self.pruning.pattern, walk)

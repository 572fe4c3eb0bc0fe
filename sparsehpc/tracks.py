"""Evaluation tracks: what runs through the layer walk for each cell."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from sparsehpc.core.errors import CellError
from sparsehpc.formats.base import FORMATS
from sparsehpc.metrics.base import TensorView

if TYPE_CHECKING:
    from sparsehpc.core.spec import Cell
    from sparsehpc.formats.base import Stored
    from sparsehpc.models.hidden import HiddenStates
    from sparsehpc.models.spool import LayerStore
    from sparsehpc.models.stream import LayerWalk
    from sparsehpc.models.structure import Parameter


#: Windows that are read together.
Batch = tuple[int, ...]

#: Tokens of a batch at most: enough for the products, too few to matter for memory.
BATCH_TOKENS = 300

#: Batches are made where so many windows fit; what is left over of a length may be fewer. Where only two fit it is not
#: worth it, and two are what the dense model is compared with itself in (`sparsehpc.floor`).
FEWEST_TOGETHER = 3


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
    head
        Storage of a pruned output head; empty where the head stays as it is.
    notes
        What the storage of a weight has to say, by name.
    exact
        Whether every stored weight decodes to the pruned weight.
    """

    variant: str
    hidden: HiddenStates
    prunable: frozenset[str]
    store: LayerStore | None = None
    cell: Cell | None = None
    head: dict[str, Stored] = dataclasses.field(default_factory=dict)
    tensors: list[TensorView] = dataclasses.field(default_factory=list)
    kernels: set[str] = dataclasses.field(default_factory=set)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    exact: bool = True
    clock: Clock = dataclasses.field(default_factory=Clock)
    error: Exception | None = None

    def encode(self, weights: Mapping[str, torch.Tensor], pattern: str, walk: LayerWalk) -> dict[str, Stored]:
        """Store pruned weights in the track's format."""
        storage = FORMATS.get(self.variant)
        with self.clock.phase("encode"):
            return {
                name: storage.encode_on(weight, pattern, walk.grid(name) if storage.uses_grid else None)
                for name, weight in weights.items()
            }

    def account(
        self,
        parameters: Sequence[Parameter],
        tensors: Mapping[str, torch.Tensor],
        stored: Mapping[str, Stored],
        errors: Mapping[str, tuple[float, float]] | None = None,
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
        errors
            Output errors of the pruned ones (`sparsehpc.reconstruction.output_errors`), where they were measured.
        """
        for parameter in parameters:
            storage = stored.get(parameter.name)
            if storage is not None:
                self.kernels.add(storage.kernel)
                if storage.note:
                    self.notes[parameter.name] = storage.note
                if self.exact and not FORMATS.get(self.variant).lossless:
                    self.exact = torch.equal(storage.decode(), tensors[parameter.name])
            prunable = parameter.name in self.prunable
            if prunable and parameter.tied_to is not None:
                # A pruned head is a copy of its own: its bytes count.
                parameter = dataclasses.replace(parameter, tied_to=None)
            view = tensor_view(parameter, tensors[parameter.name], storage, prunable)
            self.tensors.append(dataclasses.replace(view, output_error=(errors or {}).get(parameter.name)))

    def run(self, walk: LayerWalk, layer: int, batches: Sequence[Batch]) -> None:
        """Run the layer's present weights over all windows, in place."""
        with self.clock.phase("evaluate"):
            for batch in batches:
                before = torch.cat([self.hidden[window] for window in batch])
                after = walk.run(layer, before, walk.call(before.shape[1], len(batch)))
                finite = torch.isfinite(after).flatten(1).all(dim=1).tolist()
                for row, window in enumerate(batch):
                    if not finite[row]:
                        raise CellError(f"layer {layer}: hidden states of window {window} hold NaN or Inf")
                    self.hidden[window] = after[row : row + 1]


def batches_of(lengths: Sequence[int]) -> list[Batch]:
    """Windows that are read together: neighbours of one length, where they are so short that it saves time.

    >>> batches_of([60, 60, 60, 60, 60, 60, 9, 9])
    [(0, 1, 2, 3, 4), (5,), (6, 7)]
    >>> batches_of([256, 256])
    [(0,), (1,)]
    """
    batches: list[Batch] = []
    for _, same in itertools.groupby(range(len(lengths)), key=lambda window: lengths[window]):
        windows = tuple(same)
        most = BATCH_TOKENS // lengths[windows[0]]
        step = most if most >= FEWEST_TOGETHER else 1
        batches += [windows[start : start + step] for start in range(0, len(windows), step)]
    return batches


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

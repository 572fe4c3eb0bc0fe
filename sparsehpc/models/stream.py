"""The layer walk: one decoder layer at a time, never the whole model.

Lifecycle::

    walk = LayerWalk(snapshot, dtype, device)     module tree without weights
    walk.load_outside()                           embedding, final norm, head
    hidden, call = walk.embed(ids)                what the first layer gets, and the layers' other arguments
    walk.unload_outside()
    for layer in range(structure.layers):
        walk.load(layer)                          dense weights
        hidden = walk.run(layer, hidden, call)
        walk.install(layer, stored)               the same layer with other stored weights
        ...
        walk.unload(layer)
    walk.load_outside()
    logits = walk.head(hidden)

It is generic over model families: an identity pass through transformers' own decoder records the arguments that
each layer gets (masks, rotary embeddings, positions), and the layers are then called one by one with them.
Bit-equal to the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sparsehpc.core.errors import SparseHPCError
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.cache import cache_argument
from sparsehpc.models.gguf_source import block_grid

if TYPE_CHECKING:
    from sparsehpc.formats.base import BlockGrid, Stored
    from sparsehpc.models.snapshot import Snapshot

#: Arguments of every layer's forward except the hidden states, in layer order.
Call = list[dict[str, Any]]
Observer = Callable[[str, torch.Tensor], None]

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class StoredLinear(nn.Module):
    """A linear layer that multiplies from whatever its weight is stored in.

    Parameters
    ----------
    name
        Name of the weight it stands for, which observers are given.
    """

    bias: nn.Parameter | None

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.stored: Stored | None = None
        # Registered, not assigned: a plain attribute would hide the parameter that is filled in later.
        self.register_parameter("bias", None)
        self.observer: Observer | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply activations (..., in_features) into (..., out_features)."""
        if self.stored is None:
            raise SparseHPCError(f"{self.name} is used before its weight is loaded")
        if self.observer is not None:
            self.observer(self.name, x)
        return self.stored.linear(x, self.bias)


class LayerWalk:
    """A causal language model without weights, filled and run one decoder layer at a time.

    Parameters
    ----------
    snapshot
        Where config and weights come from.
    dtype
        ``float32``, ``bfloat16`` or ``float16``: type of weights and activations.
    device
        ``cpu`` or ``cuda``.
    """

    def __init__(self, snapshot: Snapshot, dtype: str = "float32", device: str = "cpu") -> None:
        self.snapshot = snapshot
        self.structure = snapshot.structure
        self.dtype = TORCH_DTYPES[dtype]
        self.device = device
        self._dtype_name = dtype
        config = AutoConfig.from_pretrained(snapshot.path, local_files_only=True, trust_remote_code=False)
        # Rotary tables are buffers computed from the config: they must be real, and stay float32.
        with init_empty_weights(include_buffers=False):
            self.model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
        for buffer_owner in self.model.modules():
            for name, buffer in list(buffer_owner._buffers.items()):
                if buffer is not None:
                    buffer_owner._buffers[name] = buffer.to(device)
        self._linears = self._replace_linears()
        self._dense = FORMATS.get("dense")
        self.layers: Any = self.model.get_submodule(self.structure.layers_path)
        if len(self.layers) != self.structure.layers:
            raise SparseHPCError(
                f"{snapshot.model}: {len(self.layers)} decoder layers, expected {self.structure.layers}"
            )
        self._forwards = [layer.forward for layer in self.layers]
        self._calls: dict[tuple[int, int], Call] = {}
        self._entrance: torch.Tensor | None = None
        self._recording: Call | None = None
        self._entered: torch.Tensor | None = None
        for index, layer in enumerate(self.layers):
            layer.forward = self._identity(index)

    def _replace_linears(self) -> dict[str, StoredLinear]:
        linears = {}
        for parameter in self.structure.parameters:
            if parameter.kind != "linear":
                continue
            parent, _, attribute = parameter.module.rpartition(".")
            linears[parameter.name] = StoredLinear(parameter.name)
            setattr(self.model.get_submodule(parent) if parent else self.model, attribute, linears[parameter.name])
        return linears

    def _identity(self, index: int) -> Callable[..., torch.Tensor]:
        """Stand in for a layer: records its arguments and passes the hidden states on."""

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            if len(args) > 1:
                raise SparseHPCError(f"{self.structure.model_type}: a decoder layer gets positional arguments")
            hidden: torch.Tensor = args[0] if args else kwargs.pop("hidden_states")
            if index == 0 and self._entrance is not None:
                return self._entrance
            if self._recording is not None:
                if index == 0:
                    self._recording.clear()
                    self._entered = hidden
                self._recording.append(kwargs)
            return hidden

        return forward

    # -- weights ----------------------------------------------------------------------------------------------

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Read parameters from the snapshot in the walk's dtype, on its device."""
        return self.snapshot.read(names, dtype=self._dtype_name, device=self.device)

    def grid(self, name: str) -> BlockGrid | None:
        """The 4-bit grid a weight was published on; None where there is none, or the walk rounds it away."""
        return block_grid(self.snapshot, name) if self.dtype == torch.float32 else None

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put plain tensors into the module tree; linear weights become dense storage."""
        for name, tensor in tensors.items():
            if name in self._linears:
                self._linears[name].stored = self._dense.encode(tensor)
                continue
            module, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(module)
            owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)

    def install(self, stored: Mapping[str, Stored]) -> None:
        """Let linear layers multiply from ``stored``, by weight name."""
        for name, storage in stored.items():
            self._linears[name].stored = storage

    def load(self, layer: int) -> dict[str, torch.Tensor]:
        """Read and fill one decoder layer; returns its tensors by name."""
        tensors = self.read([p.name for p in self.structure.in_layer(layer)])
        self.fill(tensors)
        return tensors

    def load_outside(self) -> dict[str, torch.Tensor]:
        """Read and fill what lies outside the decoder layers; tied tensors share storage."""
        outside = self.structure.outside_layers
        tensors = self.read([p.name for p in outside if p.tied_to is None])
        for parameter in outside:
            if parameter.tied_to is not None:
                tensors[parameter.name] = tensors[parameter.tied_to]
        self.fill(tensors)
        return tensors

    def unload(self, layer: int) -> None:
        """Drop the weights of one decoder layer."""
        self._drop([p.name for p in self.structure.in_layer(layer)])

    def unload_outside(self) -> None:
        """Drop the weights outside the decoder layers."""
        self._drop([p.name for p in self.structure.outside_layers])

    def _drop(self, names: list[str]) -> None:
        for name in names:
            if name in self._linears:
                self._linears[name].stored = None
                continue
            module, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(module)
            owner._parameters[attribute] = None

    # -- running ----------------------------------------------------------------------------------------------

    def embed(self, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Call]:
        """Return what the first layer gets and the arguments of all layers.

        Parameters
        ----------
        ids
            Token ids, batch x length.
        cache
            Key-value cache of a generation; None for windows of their own.

        Returns
        -------
        hidden, call
            Hidden states (batch x length x width) and the layers' other arguments.
        """
        call: Call = []
        self._recording = call
        try:
            base = self.model.base_model
            base(ids.to(self.device), use_cache=cache is not None, **cache_argument(base, cache))
        finally:
            self._recording = None
        hidden, self._entered = self._entered, None
        if hidden is None:
            raise SparseHPCError(f"{self.structure.model_type}: the decoder never reached its first layer")
        if cache is not None:
            return hidden, call
        # Arguments depend on the shape alone: keep one set per shape.
        return hidden, self._calls.setdefault((ids.shape[0], ids.shape[-1]), call)

    def call(self, tokens: int, batch: int = 1) -> Call:
        """Arguments of the layers for windows of ``tokens``, ``batch`` at once, that were embedded before."""
        return self._calls[batch, tokens]

    def run(self, layer: int, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        """Run one decoder layer with the weights it now holds."""
        output = self._forwards[layer](hidden, **call[layer])
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @contextlib.contextmanager
    def observing(self, names: Collection[str], observer: Observer) -> Iterator[None]:
        """Show the inputs of some linears to ``observer(weight name, x)`` while they run."""
        linears = [self._linears[name] for name in names]
        for linear in linears:
            linear.observer = observer
        try:
            yield
        finally:
            for linear in linears:
                linear.observer = None

    @contextlib.contextmanager
    def biases(self, changes: Mapping[str, torch.Tensor | None]) -> Iterator[None]:
        """Change biases of linears, by weight name, while the block runs: added to, or with None taken away."""
        before = {name: self._linears[name].bias for name in changes}
        for name, change in changes.items():
            old = before[name]
            new = None if change is None else change if old is None else old + change
            self._linears[name].bias = None if new is None else nn.Parameter(new, requires_grad=False)
        try:
            yield
        finally:
            for name, old in before.items():
                self._linears[name].bias = old

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and output head: hidden states (batch x length x width) to logits."""
        self._entrance = hidden
        try:
            # The ids only give the shape: the first layer's stand-in replaces their embeddings.
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
            logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
        finally:
            self._entrance = None
        return logits

"""Storage that is decoded a few rows at a time: what every packed format shares.

Where a compiled kernel serves the format, dtype and device, `Packed.matmul` calls it; everywhere else rows are decoded
in blocks that fit the cache and multiplied by torch, so that a dense copy of the matrix never exists.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from sparsehpc.formats.base import Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sparsehpc.formats.kernels.ops import Product

#: Dense weights decoded at once by the torch path: 1 MiB in float32.
_TILE_WEIGHTS = 1 << 18


def _watched(x: torch.Tensor) -> bool:
    """Whether torch traces, profiles or differentiates what happens to x."""
    import torch

    return (
        torch.compiler.is_compiling()
        or type(x) is not torch.Tensor
        or torch._C._autograd._profiler_enabled()
        or (x.requires_grad and torch.is_grad_enabled())
    )


class Packed(Stored):
    """A matrix whose rows can be decoded in ranges.

    Subclasses set their arrays and then call this initialiser, which looks for a compiled operator that serves them
    (once and for all: torch.compile can trace `matmul`).
    """

    def __init__(self) -> None:
        self._compiled = self._find_compiled()

    def _find_compiled(self) -> tuple[Product, Callable[..., torch.Tensor], tuple[torch.Tensor, ...]] | None:
        import torch

        from sparsehpc.formats import kernels

        if kernels.isa() is None or self._device.type != "cpu":
            return None
        from sparsehpc.formats.kernels import ops

        name, arrays = self._operator
        if not 1 <= self.shape[1] <= ops.MAX_COLUMNS or any(array.dtype == torch.float64 for array in arrays):
            return None
        operator: Callable[..., torch.Tensor] = getattr(torch.ops.sparsehpc, name).default
        return ops.Product(ops.ARRAYS[name](arrays[0], *arrays), self.shape[1]), operator, arrays

    def product(self) -> Product | None:
        """The compiled product, past torch's dispatcher; None where torch serves."""
        return None if self._compiled is None else self._compiled[0]

    @abstractmethod
    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Rows ``first`` to ``last`` (exclusive) as a dense matrix."""

    @property
    def _device(self) -> torch.device:
        """Where the arrays lie."""
        return self.components()["values"].device

    def decode(self) -> torch.Tensor:
        """The dense matrix; every zero that is not stored is +0.0."""
        import torch

        dense = torch.empty(self.shape, dtype=self.dtype, device=self._device)
        for first, last in self._tiles():
            dense[first:last] = self.decode_rows(first, last)
        return dense

    def _tiles(self) -> list[tuple[int, int]]:
        rows, columns = self.shape
        step = max(1, _TILE_WEIGHTS // max(1, columns))
        return [(first, min(first + step, rows)) for first in range(0, rows, step)]

    @property
    @abstractmethod
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        """Name of the compiled operator and the arrays it takes after the activations."""

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the compiled kernel, or by torch on decoded row blocks."""
        import torch
        from torch.nn.functional import linear

        if 0 in (*self.shape, *x.shape):
            return x.new_zeros(x.shape[0], self.shape[0])
        if self._compiled is not None and x.dtype != torch.float64:
            product, operator, arrays = self._compiled
            # Torch's dispatcher takes longer than the product of a small layer: only where somebody watches.
            return operator(x, *arrays) if _watched(x) else product(x)
        y = torch.empty(x.shape[0], self.shape[0], dtype=x.dtype, device=x.device)
        for first, last in self._tiles():
            y[:, first:last] = linear(x, self.decode_rows(first, last).to(x.dtype))
        return y

    @property
    def kernel(self) -> str:
        """The compiled operator with its instruction set, or what torch does instead."""
        from sparsehpc.formats import kernels

        if self._compiled is None:
            return "torch.linear on decoded row blocks"
        return f"sparsehpc::{self._operator[0]} ({kernels.isa()})"

    @property
    def flops_per_token(self) -> int:
        """What a window of many tokens executes: two per stored weight where compiled, two per weight in torch."""
        return 2 * (self._stored_weights if self._compiled is not None else self.shape[0] * self.shape[1])

    @property
    def _stored_weights(self) -> int:
        """Weights that are stored, zeros that the format keeps among them."""
        return self.components()["values"].numel()

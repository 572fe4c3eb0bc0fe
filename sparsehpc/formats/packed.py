"""Storage that is decoded a few rows at a time: what every packed format shares.

Where a compiled kernel serves the format, dtype and device, `Packed.matmul` calls it; everywhere else rows are decoded
in blocks that fit the cache and multiplied by torch, so that a dense copy of the matrix never exists.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from sparsehpc.formats.base import Stored

if TYPE_CHECKING:
    import torch

#: Dense weights decoded at once by the torch path: 1 MiB in float32.
_TILE_WEIGHTS = 1 << 18


class Packed(Stored):
    """A matrix whose rows can be decoded in ranges."""

    @abstractmethod
    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Rows ``first`` to ``last`` (exclusive) as a dense matrix."""

    @property
    @abstractmethod
    def _device(self) -> torch.device:
        """Where the arrays lie."""

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

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the compiled kernel, or by torch on decoded row blocks."""
        import torch
        from torch.nn.functional import linear

        if 0 in (*self.shape, *x.shape):
            return x.new_zeros(x.shape[0], self.shape[0])
        y = torch.empty(x.shape[0], self.shape[0], dtype=x.dtype, device=x.device)
        for first, last in self._tiles():
            y[:, first:last] = linear(x, self.decode_rows(first, last).to(x.dtype))
        return y

    @property
    def kernel(self) -> str:
        """What multiplies."""
        return "torch.linear on decoded row blocks"

    @property
    def flops_per_token(self) -> int:
        """Two per weight: decoded rows are multiplied densely."""
        return 2 * self.shape[0] * self.shape[1]

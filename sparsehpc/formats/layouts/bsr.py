"""Block sparse rows: whole blocks of the size that the pattern pruned."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from sparsehpc.formats.base import FORMATS, Format
from sparsehpc.formats.components import check_shape, take, too_many
from sparsehpc.formats.csr import Compressed, check_columns, encode_rows, row_blocks, silent_sparse

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_PATTERN = re.compile(r"block([1-9]\d*)x([1-9]\d*)")
_BLOCK_WEIGHTS = 1 << 20


class BlockRows(Compressed):
    """Dense blocks with a block-column index each.

    Parameters
    ----------
    values
        Blocks that hold a non-zero: blocks x block rows x block columns.
    indices
        Block column of every block, int32.
    offsets
        Start of every block row and the end of the last, int32.
    shape
        Rows, columns.
    """

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return (self.values.shape[1], self.values.shape[2])

    def decode(self) -> torch.Tensor:
        """The dense matrix; zeros inside a stored block keep their sign."""
        import torch

        height, width = self.block
        rows, columns = self.shape
        dense = self.values.new_zeros(rows // height, columns // width, height, width)
        block_rows = torch.repeat_interleave(self.offsets.diff())
        dense[block_rows.long(), self.indices.long()] = self.values
        return dense.transpose(1, 2).reshape(rows, columns)

    @functools.cached_property
    def _native(self) -> bool:
        """Whether torch multiplies BSR in this dtype on this device."""
        import torch

        return self.values.device.type != "cpu" or self.dtype in (torch.float32, torch.float64)

    @functools.cached_property
    def _matrix(self) -> torch.Tensor:
        return self._rows(0, self.shape[0] // self.block[0])

    def _rows(self, first: int, last: int) -> torch.Tensor:
        import torch

        start, end = int(self.offsets[first]), int(self.offsets[last])
        values = self.values[start:end]
        with silent_sparse():
            return torch.sparse_bsr_tensor(
                self.offsets[first : last + 1] - start,
                self.indices[start:end],
                values if self._native else values.float(),
                size=((last - first) * self.block[0], self.shape[1]),
                check_invariants=False,
            )

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by torch's BSR kernel; where it has none for the dtype, in float32 block rows."""
        import torch

        if 0 in (*self.shape, *x.shape) or self.values.numel() == 0:
            return x.new_zeros(x.shape[0], self.shape[0])
        if self._native:
            return (self._matrix @ x.t()).t().contiguous()
        height = self.block[0]
        y = torch.zeros(self.shape[0], x.shape[0], dtype=torch.float32)
        columns = x.float().t()
        for first, last in row_blocks(self.offsets, max(1, _BLOCK_WEIGHTS // (height * self.block[1]))):
            if int(self.offsets[last]) > int(self.offsets[first]):
                y[first * height : last * height] = self._rows(first, last) @ columns
        return y.t().to(x.dtype, memory_format=torch.contiguous_format)

    @property
    def kernel(self) -> str:
        """Torch's BSR product."""
        if self.values.device.type != "cpu":
            return f"torch.sparse_bsr ({self.values.device.type})"
        return "torch.sparse_bsr (MKL)" if self._native else "torch.sparse_bsr float32 block rows (MKL)"


@FORMATS.register("bsr")
class Bsr(Format):
    """Block sparse rows."""

    name = "bsr"
    summary = "block sparse rows: dense blocks of the pattern's size, 32-bit block indices and offsets"
    by_row = False
    study_buffers = True

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """Patterns without a block size, and blocks that do not divide the matrix."""
        found = _PATTERN.fullmatch(pattern)
        if found is None:
            return f"bsr takes its block size from the pattern (block8x8, block16x16, ...), not from {pattern!r}"
        height, width = map(int, found.groups())
        if height != width:
            return f"torch multiplies square blocks only, the pattern has {height} x {width}"
        if rows % height or columns % width:
            return f"blocks of {height} x {width} do not divide a matrix of {rows} x {columns}"
        return too_many(rows, columns)

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> BlockRows:
        """Store every block that holds a weight that differs from zero."""
        import torch

        rows, columns = weight.shape
        found = _PATTERN.fullmatch(pattern)
        if reason := cls.unsupported(rows, columns, "", pattern):
            raise ValueError(reason)
        assert found is not None  # noqa: S101 - unsupported() has just said so
        height, width = map(int, found.groups())
        blocks = weight.reshape(rows // height, height, columns // width, width).transpose(1, 2)
        kept = (blocks != 0).flatten(2).any(dim=2)
        places = encode_rows(kept, torch.int32)
        return BlockRows(blocks[kept], places.indices, places.offsets, (rows, columns))

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> BlockRows:
        """Rebuild from ``values``, ``indices`` and ``offsets``; the block size is that of ``values``."""
        import torch

        rows, columns = check_shape(shape)
        values = components.get("values")
        if values is None:
            raise ValueError(f"expected the arrays ['indices', 'offsets', 'values'], got {sorted(components)}")
        if values.ndim != 3 or 0 in values.shape[1:]:
            raise ValueError(f"values has shape {tuple(values.shape)} instead of blocks x rows x columns")
        height, width = values.shape[1:]
        if reason := cls.unsupported(rows, columns, "", f"block{height}x{width}"):
            raise ValueError(reason)
        values, indices, offsets = take(
            components,
            {
                "values": (dtype, (None, height, width)),
                "indices": (torch.int32, (None,)),
                "offsets": (torch.int32, (rows // height + 1,)),
            },
        )
        check_columns(values[:, 0, 0], indices, offsets, columns // width)
        return BlockRows(values, indices, offsets, shape)

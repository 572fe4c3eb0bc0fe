"""Compressed sparse columns: the weights of one input feature lie together."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.formats.base import FORMATS, Format
from sparsehpc.formats.components import check_shape, take, too_many
from sparsehpc.formats.csr import Compressed, check_columns, encode_rows, row_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_BLOCK_WEIGHTS = 1 << 20


class CompressedColumns(Compressed):
    """Values, row indices and column offsets.

    Parameters
    ----------
    values
        Non-zeros, column by column, rows ascending.
    indices
        Row of every value, int32.
    offsets
        Start of every column and the end of the last: columns + 1, int32.
    shape
        Rows, columns.
    """

    def decode(self) -> torch.Tensor:
        """The dense matrix; every zero is +0.0."""
        import torch

        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.values.device)
        columns = torch.repeat_interleave(self.offsets.diff())
        dense[self.indices.long(), columns.long()] = self.values
        return dense

    @property
    def _native(self) -> bool:
        import torch

        return self.dtype in (torch.float32, torch.float64)

    def _columns(self, first: int, last: int) -> Any:
        """Columns ``first`` to ``last`` as a scipy matrix; nothing is copied where scipy has the dtype."""
        from scipy.sparse import csc_array

        start, end = int(self.offsets[first]), int(self.offsets[last])
        values = self.values[start:end] if self._native else self.values[start:end].float()
        offsets = self.offsets[first : last + 1]
        offsets = offsets if first == 0 else offsets - start
        parts = (values.numpy(), self.indices[start:end].numpy(), offsets.numpy())
        return csc_array(parts, shape=(self.shape[0], last - first), copy=False)

    @functools.cached_property
    def _matrix(self) -> Any:
        return self._columns(0, self.shape[1])

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Add every column times its activation; columns are converted in blocks where scipy lacks the dtype."""
        import torch

        if 0 in (*self.shape, *x.shape):
            return x.new_zeros(x.shape[0], self.shape[0])
        if self.values.device.type != "cpu":
            matrix = torch.sparse_csc_tensor(
                self.offsets, self.indices, self.values, size=self.shape, check_invariants=False
            )
            return (matrix @ x.t()).t().contiguous()
        x = x.detach()
        if self._native:
            return torch.from_numpy((self._matrix @ x.numpy().T).T).contiguous()
        y = torch.zeros(x.shape[0], self.shape[0])
        for first, last in row_blocks(self.offsets, _BLOCK_WEIGHTS):
            y += torch.from_numpy((self._columns(first, last) @ x[:, first:last].float().numpy().T).T)
        return y.to(x.dtype)

    @property
    def kernel(self) -> str:
        """Scipy's column product: torch's own converts the whole matrix at every call."""
        if self.values.device.type != "cpu":
            return f"torch.sparse_csc ({self.values.device.type})"
        return "scipy.csc, one thread" if self._native else "scipy.csc float32 column blocks, one thread"


@FORMATS.register("csc")
class Csc(Format):
    """Compressed sparse columns."""

    name = "csc"
    summary = "compressed sparse columns, 32-bit row indices and offsets"
    by_row = False
    study_buffers = True

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """Matrices of more weights than 32-bit offsets number."""
        return too_many(rows, columns)

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> CompressedColumns:
        """Store every weight that differs from zero."""
        import torch

        columns = encode_rows(weight.t().contiguous(), torch.int32)
        return CompressedColumns(columns.values, columns.indices, columns.offsets, (weight.shape[0], weight.shape[1]))

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> CompressedColumns:
        """Rebuild from ``values``, ``indices`` and ``offsets``."""
        import torch

        rows, columns = check_shape(shape)
        if reason := cls.unsupported(rows, columns, "", "unstructured"):
            raise ValueError(reason)
        values, indices, offsets = take(
            components,
            {"values": (dtype, (None,)), "indices": (torch.int32, (None,)), "offsets": (torch.int32, (columns + 1,))},
        )
        check_columns(values, indices, offsets, rows)
        return CompressedColumns(values, indices, offsets, shape)

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """Value and index per non-zero, an offset per column and one more."""
        return nonzeros * (DTYPE_BYTES[dtype] + 4) + (columns + 1) * 4

    @classmethod
    def break_even_sparsity(cls, dtype: str) -> float:
        """Where density x (value + 4) bytes equal one dense value (tall matrices)."""
        return 4 / (DTYPE_BYTES[dtype] + 4)

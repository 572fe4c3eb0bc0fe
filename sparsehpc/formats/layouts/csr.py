"""Compressed sparse rows with 32-bit indices, and with the 64-bit ones that torch stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.formats.base import FORMATS, Format
from sparsehpc.formats.csr import CompressedRows, encode_rows, rows_from_components

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class _CompressedRows(Format):
    """Values with one column index each, and one offset per row."""

    study_buffers = True
    index_bytes: ClassVar[int]

    @classmethod
    def _index_dtype(cls) -> torch.dtype:
        import torch

        return {4: torch.int32, 8: torch.int64}[cls.index_bytes]

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """Dense matrices of so many weights that an index cannot number them."""
        if rows * columns >= 2 ** (8 * cls.index_bytes - 1):
            return f"{rows} x {columns} weights cannot be numbered by {8 * cls.index_bytes}-bit indices"
        return None

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> CompressedRows:
        """Store every weight that differs from zero."""
        return encode_rows(weight, cls._index_dtype())

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> CompressedRows:
        """Rebuild from ``values``, ``indices`` and ``offsets``."""
        return rows_from_components(components, shape, dtype, cls._index_dtype())

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """Value and index per non-zero, one offset per row and one more."""
        return nonzeros * (DTYPE_BYTES[dtype] + cls.index_bytes) + (rows + 1) * cls.index_bytes

    @classmethod
    def break_even_sparsity(cls, dtype: str) -> float:
        """Where density x (value + index) bytes equal one dense value."""
        return cls.index_bytes / (DTYPE_BYTES[dtype] + cls.index_bytes)


@FORMATS.register("csr")
class Csr(_CompressedRows):
    """CSR, 32-bit indices."""

    name = "csr"
    summary = "compressed sparse rows, 32-bit column indices and offsets"
    index_bytes = 4


@FORMATS.register("csr-int64")
class CsrInt64(_CompressedRows):
    """CSR as torch's own ``to_sparse_csr`` stores it."""

    name = "csr-int64"
    summary = "compressed sparse rows as torch's to_sparse_csr keeps them: 64-bit column indices and offsets"
    index_bytes = 8

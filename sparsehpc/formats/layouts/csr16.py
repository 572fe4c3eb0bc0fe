"""Compressed sparse rows with 16-bit column indices: any matrix up to 65,536 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.formats.base import FORMATS, Format
from sparsehpc.formats.bits import offsets_of
from sparsehpc.formats.components import check_shape, take, too_many
from sparsehpc.formats.csr import check_columns, column_indices
from sparsehpc.formats.packed import Packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_MAX_COLUMNS = 1 << 16


class ShortIndexRows(Packed):
    """Values, 16-bit column indices and row offsets.

    Parameters
    ----------
    values
        Non-zeros, row by row, columns ascending.
    indices
        Column of every value, uint16.
    offsets
        Start of every row and the end of the last: rows + 1, int32.
    shape
        Rows, columns.
    """

    def __init__(
        self, values: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor, shape: tuple[int, int]
    ) -> None:
        self.values, self.indices, self.offsets = values, indices, offsets
        self.shape = shape
        self.dtype = values.dtype
        super().__init__()

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values``, ``indices`` and ``offsets``."""
        return {"values": self.values, "indices": self.indices, "offsets": self.offsets}

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "csr16", (self.values, self.indices, self.offsets)

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Put the values of these rows into their columns."""
        import torch

        start, end = int(self.offsets[first]), int(self.offsets[last])
        dense = self.values.new_zeros(last - first, self.shape[1])
        rows = torch.repeat_interleave(self.offsets[first : last + 1].diff())
        dense[rows.long(), self.indices[start:end].long()] = self.values[start:end]
        return dense


@FORMATS.register("csr16")
class Csr16(Format):
    """CSR, 16-bit column indices."""

    name = "csr16"
    devices = ("cpu",)
    summary = "compressed sparse rows with 16-bit column indices and 32-bit offsets, up to 65,536 columns"

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """More columns than 16 bits number, or more weights than 32-bit offsets do."""
        if columns > _MAX_COLUMNS:
            return f"csr16 numbers columns with 16 bits: {columns} columns are more than {_MAX_COLUMNS}"
        return too_many(rows, columns)

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> ShortIndexRows:
        """Store every weight that differs from zero."""
        import torch

        rows, columns = weight.shape
        if reason := cls.unsupported(rows, columns, "", pattern):
            raise ValueError(reason)
        kept = weight != 0
        offsets = offsets_of(kept.sum(dim=1))
        return ShortIndexRows(weight[kept], column_indices(kept, offsets, torch.uint16), offsets, (rows, columns))

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> ShortIndexRows:
        """Rebuild from ``values``, ``indices`` and ``offsets``."""
        import torch

        rows, columns = check_shape(shape)
        if reason := cls.unsupported(rows, columns, "", "unstructured"):
            raise ValueError(reason)
        values, indices, offsets = take(
            components,
            {"values": (dtype, (None,)), "indices": (torch.uint16, (None,)), "offsets": (torch.int32, (rows + 1,))},
        )
        check_columns(values, indices.int(), offsets, columns)
        return ShortIndexRows(values, indices, offsets, shape)

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """Value and two index bytes per non-zero, an offset per row and one more."""
        return nonzeros * (DTYPE_BYTES[dtype] + 2) + (rows + 1) * 4

    @classmethod
    def break_even_sparsity(cls, dtype: str) -> float:
        """Where density x (value + 2) bytes equal one dense value."""
        return 2 / (DTYPE_BYTES[dtype] + 2)

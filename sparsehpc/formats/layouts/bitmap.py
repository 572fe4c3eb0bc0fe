"""One bit per weight, and the non-zeros packed: smaller than dense from 3 % sparsity on in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.formats.base import FORMATS, Format
from sparsehpc.formats.bits import check_mask, offsets_of, pack_mask, unpack_mask, words_per_row
from sparsehpc.formats.components import check_offsets, check_shape, take, too_many
from sparsehpc.formats.packed import Packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class BitmapMatrix(Packed):
    """Mask words, packed values and row offsets.

    Parameters
    ----------
    mask
        One bit per column, 64 a word: rows x words, int64.
    values
        Non-zeros, row by row, columns ascending.
    offsets
        Start of every row in ``values`` and the end of the last: rows + 1, int32.
    shape
        Rows, columns.
    """

    def __init__(self, mask: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor, shape: tuple[int, int]) -> None:
        self.mask, self.values, self.offsets = mask, values, offsets
        self.shape = shape
        self.dtype = values.dtype
        super().__init__()

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values``, ``mask`` and ``offsets``."""
        return {"values": self.values, "mask": self.mask, "offsets": self.offsets}

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "bitmap", (self.values, self.mask, self.offsets)

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Put the values of these rows where their bits are."""
        kept = unpack_mask(self.mask[first:last], self.shape[1])
        dense = self.values.new_zeros(kept.shape)
        return dense.masked_scatter_(kept, self.values[int(self.offsets[first]) : int(self.offsets[last])])


@FORMATS.register("bitmap")
class Bitmap(Format):
    """Mask bits and packed values."""

    name = "bitmap"
    devices = ("cpu",)
    summary = "one mask bit per weight in 64-bit words, packed non-zeros, one 32-bit offset per row"

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """Matrices of more weights than 32-bit offsets number."""
        return too_many(rows, columns)

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> BitmapMatrix:
        """Store every weight that differs from zero."""
        kept = weight != 0
        return BitmapMatrix(pack_mask(kept), weight[kept], offsets_of(kept.sum(dim=1)), (kept.shape[0], kept.shape[1]))

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> BitmapMatrix:
        """Rebuild from ``values``, ``mask`` and ``offsets``."""
        import torch

        rows, columns = check_shape(shape)
        values, mask, offsets = take(
            components,
            {
                "values": (dtype, (None,)),
                "mask": (torch.int64, (rows, words_per_row(columns))),
                "offsets": (torch.int32, (rows + 1,)),
            },
        )
        check_offsets(offsets, values.numel(), columns)
        check_mask(mask, offsets, columns)
        return BitmapMatrix(mask, values, offsets, shape)

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """A value per non-zero, a bit per weight in whole words, an offset per row and one more."""
        return nonzeros * DTYPE_BYTES[dtype] + rows * words_per_row(columns) * 8 + (rows + 1) * 4

    @classmethod
    def break_even_sparsity(cls, dtype: str) -> float:
        """Where the mask's bit per weight is saved: one eighth of a byte of a value's bytes."""
        return 1 / (8 * DTYPE_BYTES[dtype])

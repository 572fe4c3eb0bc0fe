"""Mask bits with 8-bit or 4-bit codes of the kept weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsehpc.formats.base import FORMATS, BlockGrid, Format
from sparsehpc.formats.bits import (
    check_mask,
    offsets_of,
    pack_mask,
    pack_nibbles,
    row_counts,
    unpack_mask,
    unpack_nibbles,
    words_per_row,
)
from sparsehpc.formats.components import check_offsets, check_shape, take, too_many
from sparsehpc.formats.packed import Packed
from sparsehpc.formats.quantised import (
    blocks_per_row,
    check_grid,
    codes_on,
    fit_grid,
    quantise_rows,
    require_finite,
    weights_on,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class _MaskedCodes(Packed):
    """Mask words, codes of the kept weights, scales and row offsets; see the subclasses."""

    def __init__(
        self,
        mask: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor,
        offsets: torch.Tensor,
        shape: tuple[int, int],
        dtype: torch.dtype,
        note: str = "",
    ) -> None:
        self.mask, self.codes, self.scales, self.offsets = mask, codes, scales, offsets
        self.shape = shape
        self.dtype = dtype
        self.note = note
        super().__init__()

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values`` (the codes), ``mask``, ``scales`` and ``offsets``."""
        return {"values": self.codes, "mask": self.mask, "scales": self.scales, "offsets": self.offsets}


class BitmapBytes(_MaskedCodes):
    """Mask words, 8-bit codes of the kept weights, a scale per row.

    Parameters
    ----------
    mask
        One bit per column, 64 a word: rows x words, int64.
    codes
        Kept weights, row by row, int8.
    scales
        One per row, float32.
    offsets
        Start of every row in ``codes`` and the end of the last: rows + 1, int32.
    shape
        Rows, columns.
    dtype
        Type of the decoded weights.
    """

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "bitmap_int8", (self.codes, self.mask, self.scales, self.offsets)

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Code times scale where the mask has a bit."""
        import torch

        kept = unpack_mask(self.mask[first:last], self.shape[1])
        codes = self.codes[int(self.offsets[first]) : int(self.offsets[last])]
        dense = torch.zeros(kept.shape, device=self.codes.device).masked_scatter_(kept, codes.float())
        return dense.mul_(self.scales[first:last, None]).to(self.dtype)


class BitmapNibbles(_MaskedCodes):
    """Mask words, 4-bit codes of the kept weights, a grid per 32 columns.

    Parameters
    ----------
    mask
        One bit per column, 64 a word: rows x words, int64.
    codes
        Codes of the kept weights, two a byte, the earlier in the low half; every row begins with a new byte, uint8.
    scales
        Scale and minimum of every block: rows x blocks x 2, float16.
    offsets
        First byte of every row in ``codes`` and the end of the last: rows + 1, int32.
    shape
        Rows, columns.
    dtype
        Type of the decoded weights.
    note
        Whether the codes give the encoded weights back bit for bit.
    """

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "bitmap_q4", (self.codes, self.mask, self.scales, self.offsets)

    @property
    def _stored_weights(self) -> int:
        return int(row_counts(self.mask).sum())

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Scale times code plus minimum where the mask has a bit."""
        import torch

        kept = unpack_mask(self.mask[first:last], self.shape[1])
        counts = kept.sum(dim=1)
        start = int(self.offsets[first])
        codes = unpack_nibbles(self.codes[start : int(self.offsets[last])])
        begins = (self.offsets[first:last].long() - start) * 2
        filled = torch.zeros_like(codes, dtype=torch.bool)
        before = counts.cumsum(0) - counts
        positions = torch.arange(int(counts.sum()), device=self.codes.device)
        filled[positions + (begins - before).repeat_interleave(counts)] = True
        dense = codes.new_zeros(kept.shape).masked_scatter_(kept, codes[filled])
        grid = BlockGrid(self.scales[first:last, :, 0], self.scales[first:last, :, 1])
        weights = weights_on(dense, grid, self.dtype)
        return weights.masked_fill_(~kept, 0.0)


@FORMATS.register("bitmap-int8")
class BitmapInt8(Format):
    """Mask bits and 8-bit codes."""

    name = "bitmap-int8"
    devices = ("cpu",)
    summary = "one mask bit per weight, kept weights rounded to 255 symmetric levels with one float32 scale per row"
    lossless = False

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """Matrices of more weights than 32-bit offsets number."""
        return too_many(rows, columns)

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> BitmapBytes:
        """Round every weight that differs from zero; one that rounds to zero keeps its bit."""
        require_finite(weight, cls.name)
        kept = weight != 0
        codes, scales = quantise_rows(weight)
        shape = (weight.shape[0], weight.shape[1])
        return BitmapBytes(pack_mask(kept), codes[kept], scales, offsets_of(kept.sum(dim=1)), shape, weight.dtype)

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> BitmapBytes:
        """Rebuild from ``values``, ``mask``, ``scales`` and ``offsets``."""
        import torch

        rows, columns = check_shape(shape)
        codes, mask, scales, offsets = take(
            components,
            {
                "values": (torch.int8, (None,)),
                "mask": (torch.int64, (rows, words_per_row(columns))),
                "scales": (torch.float32, (rows,)),
                "offsets": (torch.int32, (rows + 1,)),
            },
        )
        check_offsets(offsets, codes.numel(), columns)
        check_mask(mask, offsets, columns)
        return BitmapBytes(mask, codes, scales, offsets, shape, dtype)

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """A byte per non-zero, a bit per weight in whole words, scale and offset per row."""
        return nonzeros + rows * words_per_row(columns) * 8 + rows * 4 + (rows + 1) * 4


@FORMATS.register("bitmap-q4")
class BitmapQ4(Format):
    """Mask bits and 4-bit codes: smaller than a 4-bit checkpoint itself, and exact where that is the source."""

    name = "bitmap-q4"
    devices = ("cpu",)
    summary = "one mask bit per weight, 4-bit codes of the kept weights on the checkpoint's own grid (exact on a Q4_1)"
    lossless = False
    uses_grid = True

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """Matrices of more weights than 32-bit offsets number."""
        return too_many(rows, columns)

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> BitmapNibbles:
        """Fit a grid to every block, zeros included, and round the kept weights to it."""
        return cls.encode_on(weight, pattern, None)

    @classmethod
    def encode_on(cls, weight: torch.Tensor, pattern: str, grid: BlockGrid | None) -> BitmapNibbles:
        """Store the source's own codes; a weight that a method has moved off the grid is rounded back to it."""
        import torch

        require_finite(weight, cls.name)
        rows, columns = weight.shape
        own = grid is None
        grid = fit_grid(weight) if grid is None else check_grid(grid, rows, columns)
        kept = weight != 0
        codes = codes_on(weight, grid)
        moved = int((weights_on(codes, grid, weight.dtype) != weight)[kept].sum())
        counts = kept.sum(dim=1)
        offsets = offsets_of((counts + 1) // 2)
        nibbles = torch.zeros(2 * int(offsets[-1]), dtype=torch.uint8, device=weight.device)
        before = counts.cumsum(0) - counts
        places = torch.arange(int(counts.sum()), device=weight.device)
        nibbles[places + (offsets[:-1].long() * 2 - before).repeat_interleave(counts)] = codes[kept]
        source = "a grid fitted to the weights" if own else "the checkpoint's own grid"
        note = f"bit-exact on {source}" if not moved else f"{moved} of {int(counts.sum())} weights rounded to {source}"
        return BitmapNibbles(
            pack_mask(kept),
            pack_nibbles(nibbles),
            torch.stack(grid, dim=2),
            offsets,
            (rows, columns),
            weight.dtype,
            note,
        )

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> BitmapNibbles:
        """Rebuild from ``values``, ``mask``, ``scales`` and ``offsets``."""
        import torch

        rows, columns = check_shape(shape)
        codes, mask, scales, offsets = take(
            components,
            {
                "values": (torch.uint8, (None,)),
                "mask": (torch.int64, (rows, words_per_row(columns))),
                "scales": (torch.float16, (rows, blocks_per_row(columns), 2)),
                "offsets": (torch.int32, (rows + 1,)),
            },
        )
        check_offsets(offsets, codes.numel(), columns)
        check_mask(mask, offsets, columns, bits_an_entry=2)
        return BitmapNibbles(mask, codes, scales, offsets, shape, dtype)

"""Dense references in fewer bits: what a reader would otherwise pick instead of a sparse model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsehpc.formats.base import FORMATS, BlockGrid, Format
from sparsehpc.formats.bits import pack_nibbles, unpack_nibbles
from sparsehpc.formats.components import check_shape, take
from sparsehpc.formats.packed import Packed
from sparsehpc.formats.quantised import (
    BLOCK_COLUMNS,
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


class HalfMatrix(Packed):
    """The matrix in bfloat16.

    Parameters
    ----------
    values
        Rows x columns, bfloat16.
    dtype
        Type of the decoded weights.
    """

    def __init__(self, values: torch.Tensor, dtype: torch.dtype) -> None:
        self.values = values
        self.shape = (values.shape[0], values.shape[1])
        self.dtype = dtype
        super().__init__()

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values``."""
        return {"values": self.values}

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "dense", (self.values,)

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Widen these rows."""
        return self.values[first:last].to(self.dtype)


class ByteMatrix(Packed):
    """8-bit codes and a scale per row.

    Parameters
    ----------
    codes
        Rows x columns, int8.
    scales
        One per row, float32.
    dtype
        Type of the decoded weights.
    """

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> None:
        self.codes, self.scales = codes, scales
        self.shape = (codes.shape[0], codes.shape[1])
        self.dtype = dtype
        super().__init__()

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values`` (the codes) and ``scales``."""
        return {"values": self.codes, "scales": self.scales}

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "dense_int8", (self.codes, self.scales)

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Code times scale."""
        return (self.codes[first:last].float() * self.scales[first:last, None]).to(self.dtype)


class NibbleMatrix(Packed):
    """4-bit codes on a grid per 32 columns.

    Parameters
    ----------
    codes
        Two codes a byte, the column with the even number in the low half, whole blocks of 32: rows x 16 blocks, uint8.
    scales
        Scale and minimum of every block: rows x blocks x 2, float16.
    shape
        Rows, columns.
    dtype
        Type of the decoded weights.
    """

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.codes, self.scales = codes, scales
        self.shape = shape
        self.dtype = dtype
        super().__init__()

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values`` (the codes) and ``scales``."""
        return {"values": self.codes, "scales": self.scales}

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "dense_q4", (self.codes, self.scales)

    @property
    def _stored_weights(self) -> int:
        return self.shape[0] * self.shape[1]

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Scale times code plus minimum."""
        codes = unpack_nibbles(self.codes[first:last])[:, : self.shape[1]]
        grid = BlockGrid(self.scales[first:last, :, 0], self.scales[first:last, :, 1])
        return weights_on(codes, grid, self.dtype)


@FORMATS.register("dense-bf16")
class DenseBfloat16(Format):
    """Dense, rounded to bfloat16."""

    name = "dense-bf16"
    summary = "dense weights rounded to bfloat16"
    lossless = False
    reference = True

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> HalfMatrix:
        """Round to nearest, ties to even."""
        import torch

        return HalfMatrix(weight.to(torch.bfloat16, copy=True).contiguous(), weight.dtype)

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> HalfMatrix:
        """Rebuild from ``values``."""
        import torch

        (values,) = take(components, {"values": (torch.bfloat16, check_shape(shape))})
        return HalfMatrix(values, dtype)

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """Two per weight."""
        return 2 * rows * columns


@FORMATS.register("dense-int8")
class DenseInt8(Format):
    """Dense, 8 bits a weight."""

    name = "dense-int8"
    summary = "dense weights rounded to 255 symmetric levels, one float32 scale per row"
    lossless = False
    reference = True

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> ByteMatrix:
        """Round to the nearest level of the row."""
        require_finite(weight, cls.name)
        return ByteMatrix(*quantise_rows(weight), weight.dtype)

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> ByteMatrix:
        """Rebuild from ``values`` and ``scales``."""
        import torch

        rows, columns = check_shape(shape)
        codes, scales = take(components, {"values": (torch.int8, (rows, columns)), "scales": (torch.float32, (rows,))})
        return ByteMatrix(codes, scales, dtype)

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """One per weight and four per row."""
        return rows * columns + 4 * rows


@FORMATS.register("dense-q4")
class DenseQ4(Format):
    """Dense, 5 bits a weight in all."""

    name = "dense-q4"
    summary = "dense weights rounded to 16 levels per 32 columns, float16 scale and minimum (as GGUF's Q4_1)"
    lossless = False
    uses_grid = True
    reference = True

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> NibbleMatrix:
        """Fit a grid to every block and round to it."""
        return cls.encode_on(weight, pattern, None)

    @classmethod
    def encode_on(cls, weight: torch.Tensor, pattern: str, grid: BlockGrid | None) -> NibbleMatrix:
        """Round to the checkpoint's own grid where it has one, which changes no weight that lies on it."""
        import torch
        from torch.nn.functional import pad

        require_finite(weight, cls.name)
        rows, columns = weight.shape
        grid = fit_grid(weight) if grid is None else check_grid(grid, rows, columns)
        codes = pad(codes_on(weight, grid), (0, blocks_per_row(columns) * BLOCK_COLUMNS - columns))
        return NibbleMatrix(pack_nibbles(codes), torch.stack(grid, dim=2), (rows, columns), weight.dtype)

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> NibbleMatrix:
        """Rebuild from ``values`` and ``scales``."""
        import torch

        rows, columns = check_shape(shape)
        blocks = blocks_per_row(columns)
        codes, scales = take(
            components,
            {
                "values": (torch.uint8, (rows, blocks * BLOCK_COLUMNS // 2)),
                "scales": (torch.float16, (rows, blocks, 2)),
            },
        )
        return NibbleMatrix(codes, scales, shape, dtype)

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """Twenty per block of 32 columns: 16 of codes, 4 of scale and minimum."""
        return rows * blocks_per_row(columns) * 20

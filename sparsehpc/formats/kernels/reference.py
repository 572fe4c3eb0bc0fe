"""What every compiled operator must compute, restated in float64 with NumPy, straight from the arrays.

Nothing here shares code with the formats' own decoders: bits are read one by one. Slow on purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Float64 = npt.NDArray[np.float64]


def product(name: str, x: torch.Tensor, *arrays: torch.Tensor) -> Float64:
    """Compute ``sparsehpc::name`` in float64: tokens x rows."""
    result: Float64 = _float64(x) @ weights(name, x.shape[1], *arrays).T
    return result


def weights(name: str, columns: int, *arrays: torch.Tensor) -> Float64:
    """Dense float64 matrix that the arrays of ``sparsehpc::name`` stand for, rows x columns."""
    result: Float64 = _DECODERS[name](columns, *arrays)
    return result


def _float64(array: torch.Tensor) -> Float64:
    result: Float64 = array.double().numpy()
    return result


def _bits(mask: torch.Tensor, row: int, columns: int) -> list[int]:
    words = [int(word) % (1 << 64) for word in mask[row].tolist()]
    return [column for column in range(columns) if words[column // 64] >> (column % 64) & 1]


def _dense(columns: int, values: torch.Tensor) -> Float64:
    return _float64(values)


def _dense_int8(columns: int, codes: torch.Tensor, scales: torch.Tensor) -> Float64:
    return _float64(codes) * _float64(scales)[:, None]


def _nibbles(packed: torch.Tensor) -> list[int]:
    return [code for byte in packed.tolist() for code in (byte & 15, byte >> 4)]


def _level(grid: Float64, row: int, column: int, code: int) -> float:
    scale, minimum = grid[row, column // 32]
    return float(scale * code + minimum)


def _dense_q4(columns: int, codes: torch.Tensor, scales: torch.Tensor) -> Float64:
    dense, grid = np.zeros((codes.shape[0], columns)), _float64(scales)
    for row in range(codes.shape[0]):
        for column, code in enumerate(_nibbles(codes[row])[:columns]):
            dense[row, column] = _level(grid, row, column, code)
    return dense


def _bitmap(columns: int, values: torch.Tensor, mask: torch.Tensor, offsets: torch.Tensor) -> Float64:
    dense, stored = np.zeros((mask.shape[0], columns)), _float64(values)
    for row in range(mask.shape[0]):
        dense[row, _bits(mask, row, columns)] = stored[int(offsets[row]) : int(offsets[row + 1])]
    return dense


def _keep(columns: int, values: torch.Tensor, mask: torch.Tensor) -> Float64:
    dense, stored = np.zeros((mask.shape[0], columns)), _float64(values)
    for row in range(mask.shape[0]):
        dense[row, _bits(mask, row, columns)] = stored[row]
    return dense


def _one_of_four(columns: int, values: torch.Tensor, positions: torch.Tensor) -> Float64:
    dense, stored = np.zeros((values.shape[0], columns)), _float64(values)
    for row in range(values.shape[0]):
        for group in range(columns // 4):
            place = int(positions[row, group // 4]) >> (2 * (group % 4)) & 3
            dense[row, 4 * group + place] = stored[row, group]
    return dense


def _csr16(columns: int, values: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor) -> Float64:
    dense, stored, places = np.zeros((offsets.shape[0] - 1, columns)), _float64(values), indices.numpy()
    for row in range(dense.shape[0]):
        part = slice(int(offsets[row]), int(offsets[row + 1]))
        dense[row, places[part]] = stored[part]
    return dense


def _bitmap_int8(
    columns: int, codes: torch.Tensor, mask: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor
) -> Float64:
    return _bitmap(columns, codes, mask, offsets) * _float64(scales)[:, None]


def _bitmap_q4(
    columns: int, codes: torch.Tensor, mask: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor
) -> Float64:
    dense, grid = np.zeros((mask.shape[0], columns)), _float64(scales)
    for row in range(mask.shape[0]):
        stored = _nibbles(codes[int(offsets[row]) : int(offsets[row + 1])])
        for column, code in zip(_bits(mask, row, columns), stored, strict=False):
            dense[row, column] = _level(grid, row, column, code)
    return dense


_DECODERS: dict[str, Any] = {
    "dense": _dense,
    "dense_int8": _dense_int8,
    "dense_q4": _dense_q4,
    "bitmap": _bitmap,
    "keep": _keep,
    "one_of_four": _one_of_four,
    "csr16": _csr16,
    "bitmap_int8": _bitmap_int8,
    "bitmap_q4": _bitmap_q4,
}

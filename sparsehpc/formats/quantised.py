"""8-bit codes with a scale per row, and 4-bit codes on a grid per 32 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsehpc.formats.base import BlockGrid

if TYPE_CHECKING:
    import torch

#: Columns that share one scale and minimum in the 4-bit formats.
BLOCK_COLUMNS = 32


def blocks_per_row(columns: int) -> int:
    """Blocks of 32 columns that cover a row."""
    return -(-columns // BLOCK_COLUMNS)


def require_finite(weight: torch.Tensor, form: str) -> None:
    """ValueError where a weight is NaN or Inf: codes cannot say so."""
    if not bool(weight.isfinite().all()):
        raise ValueError(f"{form} cannot store NaN or infinite weights")


def quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to the nearest of 255 symmetric levels per row.

    Parameters
    ----------
    weight
        Finite, rows x columns.

    Returns
    -------
    codes, scales
        int8 (rows x columns, -127 to 127) and float32 (rows); weight is about code x scale. A row of zeros has scale 0.
    """
    import torch

    exact = weight.float()
    largest = exact.abs().amax(dim=1) if weight.shape[1] else exact.new_zeros(weight.shape[0])
    scales = largest / 127
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (exact / steps[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return codes, scales


def fit_grid(weight: torch.Tensor) -> BlockGrid:
    """Scale and minimum of every block of 32 columns, so that codes 0 and 15 meet its extremes.

    Parameters
    ----------
    weight
        Finite, rows x columns; a narrower last block is fitted to the columns it has.

    Raises
    ------
    ValueError
        A block's range does not fit float16.
    """
    import torch
    from torch.nn.functional import pad

    rows, columns = weight.shape
    if weight.numel() == 0:
        empty = torch.zeros(rows, blocks_per_row(columns), dtype=torch.float16, device=weight.device)
        return BlockGrid(empty, empty.clone())
    spare = blocks_per_row(columns) * BLOCK_COLUMNS - columns
    exact = weight.float()
    low = pad(exact, (0, spare), value=torch.inf).view(rows, -1, BLOCK_COLUMNS).amin(dim=2)
    high = pad(exact, (0, spare), value=-torch.inf).view(rows, -1, BLOCK_COLUMNS).amax(dim=2)
    grid = BlockGrid(((high - low) / 15).half(), low.half())
    if not bool(grid.scales.isfinite().all() and grid.minima.isfinite().all()):
        raise ValueError("a block of 32 weights spans more than float16 scales can hold")
    return grid


def codes_on(weight: torch.Tensor, grid: BlockGrid) -> torch.Tensor:
    """Nearest codes (0 to 15, uint8, rows x columns) of weights on a grid; exact where the weights lie on it."""
    import torch

    scales, minima = (_spread(part, weight.shape[1]) for part in grid)
    steps = torch.where(scales == 0, torch.ones_like(scales), scales)
    return ((weight.float() - minima) / steps).round_().clamp_(0, 15).to(torch.uint8)


def weights_on(codes: torch.Tensor, grid: BlockGrid, dtype: torch.dtype) -> torch.Tensor:
    """Weights of codes: float32 product, float32 sum, then the dtype (as GGUF's own dequantisation rounds)."""
    scales, minima = (_spread(part, codes.shape[1]) for part in grid)
    return (scales * codes.float()).add_(minima).to(dtype)


def check_grid(grid: BlockGrid, rows: int, columns: int) -> BlockGrid:
    """Return a grid that fits a matrix of rows x columns and is finite; ValueError otherwise."""
    import torch

    shape = (rows, blocks_per_row(columns))
    for name, part in zip(grid._fields, grid, strict=True):
        if part.dtype != torch.float16 or tuple(part.shape) != shape:
            raise ValueError(f"{name} of the grid: {part.dtype} {tuple(part.shape)} instead of float16 {shape}")
        if not bool(part.isfinite().all()):
            raise ValueError(f"{name} of the grid are not finite")
    return grid


def _spread(part: torch.Tensor, columns: int) -> torch.Tensor:
    """One float32 per column of a per-block array."""
    return part.float().repeat_interleave(BLOCK_COLUMNS, dim=1)[:, :columns]

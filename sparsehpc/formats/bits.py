"""Masks as 64-bit words and small codes packed into bytes.

Bit ``c % 64`` of word ``c // 64`` of a row is column ``c``; on the little-endian machines this runs on, that is also
bit ``c % 8`` of byte ``c // 8``. Bits past the last column are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD_BITS = 64


def words_per_row(columns: int) -> int:
    """64-bit words that hold one bit per column."""
    return -(-columns // WORD_BITS)


def pack_mask(kept: torch.Tensor) -> torch.Tensor:
    """Pack booleans (rows x columns) into words (rows x words, int64)."""
    import torch
    from torch.nn.functional import pad

    rows, columns = kept.shape
    words = words_per_row(columns)
    if kept.numel() == 0:
        return torch.zeros(rows, words, dtype=torch.int64, device=kept.device)
    bits = pad(kept, (0, words * WORD_BITS - columns)).view(rows, words * 8, 8).to(torch.uint8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=kept.device)
    return (bits * weights).sum(dim=2, dtype=torch.uint8).view(torch.int64)


def unpack_mask(words: torch.Tensor, columns: int) -> torch.Tensor:
    """Booleans (rows x columns) of packed words."""
    import torch

    rows = words.shape[0]
    if words.numel() == 0:
        return torch.zeros(rows, columns, dtype=torch.bool, device=words.device)
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    octets = words.view(torch.uint8)[:, :, None]
    return ((octets >> shifts) & 1).bool().view(rows, -1)[:, :columns]


def row_counts(words: torch.Tensor) -> torch.Tensor:
    """Set bits of every row, int64."""
    import torch

    if words.numel() == 0:
        return torch.zeros(words.shape[0], dtype=torch.int64, device=words.device)
    table = torch.tensor([value.bit_count() for value in range(256)], dtype=torch.uint8, device=words.device)
    return table[words.view(torch.uint8).int()].sum(dim=1, dtype=torch.int64)


def check_spare_bits(words: torch.Tensor, columns: int) -> None:
    """Require that no bit past the last column is set; ValueError otherwise."""
    spare = words.shape[1] * WORD_BITS - columns
    if spare and words.shape[0] and bool(((words[:, -1] >> (WORD_BITS - spare)) & ((1 << spare) - 1)).any()):
        raise ValueError(f"the mask has bits beyond column {columns - 1}")


def check_mask(mask: torch.Tensor, offsets: torch.Tensor, columns: int, *, bits_an_entry: int = 1) -> None:
    """Require mask words whose rows have the bits that offsets say; ValueError otherwise.

    Parameters
    ----------
    mask
        Rows x words, int64.
    offsets
        Rows + 1.
    columns
        Width of the matrix.
    bits_an_entry
        Set bits that share one of the entries that the offsets count (two 4-bit codes a byte); the last may have fewer.
    """
    import torch

    check_spare_bits(mask, columns)
    entries = (row_counts(mask) + bits_an_entry - 1) // bits_an_entry
    if not torch.equal(offsets.diff().long(), entries):
        raise ValueError("the offsets do not agree with the bits of the mask")


def offsets_of(counts: torch.Tensor) -> torch.Tensor:
    """Offsets (rows + 1, int32) of rows that hold ``counts`` entries; ValueError where 31 bits do not suffice."""
    import torch

    ends = counts.cumsum(0)
    if ends.numel() and int(ends[-1]) > torch.iinfo(torch.int32).max:
        raise ValueError(f"{int(ends[-1])} stored weights cannot be numbered by 32-bit offsets")
    offsets = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=counts.device)
    offsets[1:] = ends
    return offsets


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Two 4-bit codes a byte along the last, even dimension: the earlier one in the low half."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Codes of packed bytes: the last dimension doubles."""
    import torch

    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)

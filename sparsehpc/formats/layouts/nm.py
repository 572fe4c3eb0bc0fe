"""Keep N of M: a fixed number of values a row, so that no offsets are needed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sparsehpc.formats.base import FORMATS, Format
from sparsehpc.formats.bits import check_spare_bits, pack_mask, row_counts, unpack_mask, words_per_row
from sparsehpc.formats.components import check_shape, take
from sparsehpc.formats.packed import Packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


class KeepMask(Packed):
    """One mask bit per weight and equally many values in every row.

    Parameters
    ----------
    mask
        One bit per column, 64 a word: rows x words, int64; every row has as many bits as ``values`` has columns.
    values
        Kept weights (a zero among them is stored as one): rows x kept per row.
    shape
        Rows, columns.
    """

    def __init__(self, mask: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> None:
        self.mask, self.values = mask, values
        self.shape = shape
        self.dtype = values.dtype
        super().__init__()

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values`` and ``mask``."""
        return {"values": self.values, "mask": self.mask}

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "keep", (self.values, self.mask)

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Put the values of these rows where their bits are."""
        kept = unpack_mask(self.mask[first:last], self.shape[1])
        return self.values.new_zeros(kept.shape).masked_scatter_(kept, self.values[first:last])


class OneOfFour(Packed):
    """One value and a 2-bit position per four weights.

    Parameters
    ----------
    positions
        Four groups a byte, the first in the lowest two bits: rows x ceil(columns / 16), uint8.
    values
        Kept weights: rows x columns / 4.
    shape
        Rows, columns.
    """

    def __init__(self, positions: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> None:
        self.positions, self.values = positions, values
        self.shape = shape
        self.dtype = values.dtype
        super().__init__()

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values`` and ``positions``."""
        return {"values": self.values, "positions": self.positions}

    @property
    def _operator(self) -> tuple[str, tuple[torch.Tensor, ...]]:
        return "one_of_four", (self.values, self.positions)

    def decode_rows(self, first: int, last: int) -> torch.Tensor:
        """Put each value at its position among four."""
        import torch

        rows, groups = last - first, self.shape[1] // 4
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=self.values.device)
        places = ((self.positions[first:last, :, None] >> shifts) & 3).reshape(rows, -1)[:, :groups]
        dense = self.values.new_zeros(rows, groups, 4)
        dense.scatter_(2, places[:, :, None].long(), self.values[first:last, :, None])
        return dense.view(rows, self.shape[1])


def parse(pattern: str) -> tuple[int, int] | None:
    """N and M of "keep N of M", or None for another pattern."""
    found = _PATTERN.fullmatch(pattern)
    keep, of = map(int, found.groups()) if found else (0, 0)
    return (keep, of) if 0 < keep < of else None


@FORMATS.register("nm")
class KeepNOfM(Format):
    """Keep N of M."""

    name = "nm"
    devices = ("cpu",)
    summary = "keep N of M: N values per group and one mask bit per weight (1:4: a 2-bit position), no offsets"

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """Other patterns, and groups that do not divide the width."""
        parsed = parse(pattern)
        if parsed is None:
            return f"nm stores the patterns keep N of M (2:4, 4:8, 1:4, ...), not {pattern!r}"
        if columns % parsed[1]:
            return f"groups of {parsed[1]} do not divide {columns} columns"
        return None

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> KeepMask | OneOfFour:
        """Store N weights of every group of M; a group with fewer non-zeros keeps its first zeros as values."""
        rows, columns = weight.shape
        if reason := cls.unsupported(rows, columns, "", pattern):
            raise ValueError(reason)
        keep, of = parse(pattern) or (0, 0)
        groups = weight.reshape(rows, columns // of, of)
        zero = groups == 0
        if bool(((~zero).sum(dim=2) > keep).any()):
            raise ValueError(f"a group of {of} holds more than {keep} non-zeros: the weight is not pruned to {pattern}")
        chosen = zero.to(groups.dtype).argsort(dim=2, stable=True)[:, :, :keep].sort(dim=2).values
        values = groups.gather(2, chosen).reshape(rows, columns // of * keep) + 0.0
        if (keep, of) == (1, 4):
            return OneOfFour(_pack_positions(chosen[:, :, 0]), values, (rows, columns))
        kept = zero.new_zeros(zero.shape).scatter_(2, chosen, True).reshape(rows, columns)
        return KeepMask(pack_mask(kept), values, (rows, columns))

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> KeepMask | OneOfFour:
        """Rebuild from ``values`` and ``mask`` or ``positions``."""
        import torch

        rows, columns = check_shape(shape)
        if "positions" in components:
            if columns % 4:
                raise ValueError(f"groups of 4 do not divide {columns} columns")
            values, positions = take(
                components,
                {"values": (dtype, (rows, columns // 4)), "positions": (torch.uint8, (rows, -(-columns // 16)))},
            )
            return OneOfFour(positions, values, shape)
        values, mask = take(
            components, {"values": (dtype, (rows, None)), "mask": (torch.int64, (rows, words_per_row(columns)))}
        )
        check_spare_bits(mask, columns)
        if bool((row_counts(mask) != values.shape[1]).any()):
            raise ValueError(f"a row of the mask does not have the {values.shape[1]} bits that it has values")
        return KeepMask(mask, values, shape)


def _pack_positions(positions: torch.Tensor) -> torch.Tensor:
    """Four 2-bit positions a byte; a row that does not fill its last byte ends in zeros."""
    import torch
    from torch.nn.functional import pad

    rows, groups = positions.shape
    padded = pad(positions.to(torch.uint8), (0, -groups % 4)).view(rows, -1, 4)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=positions.device)
    return (padded << shifts).sum(dim=2, dtype=torch.uint8)

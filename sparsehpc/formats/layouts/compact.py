"""Dense storage without empty rows and columns: what structured pruning leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsehpc.formats.base import FORMATS, Format, Stored
from sparsehpc.formats.components import check_shape, take

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class CompactMatrix(Stored):
    """The smallest dense matrix that holds every non-zero, and which rows and columns it is made of.

    Parameters
    ----------
    values
        Kept rows x kept columns, contiguous.
    rows, columns
        bool, True for every row and column of the whole matrix that is kept.
    """

    def __init__(self, values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> None:
        self.values, self.rows, self.columns = values, rows, columns
        self.shape, self.dtype = (rows.numel(), columns.numel()), values.dtype

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values`` and the flags of kept ``rows`` and ``columns``."""
        return {"values": self.values, "rows": self.rows, "columns": self.columns}

    def decode(self) -> torch.Tensor:
        """The matrix with its empty rows and columns."""
        wide = self.values.new_zeros(self.values.shape[0], self.shape[1])
        wide[:, self.columns] = self.values
        whole = self.values.new_zeros(self.shape)
        whole[self.rows] = wide
        return whole

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply what is kept; a left-out output is zero."""
        from torch.nn.functional import linear

        if self.values.shape[1] != self.shape[1]:
            x = x.index_select(1, self.columns.nonzero().view(-1))
        y = linear(x, self.values.to(x.dtype))
        if self.values.shape[0] == self.shape[0]:
            return y
        return y.new_zeros(y.shape[0], self.shape[0]).index_copy_(1, self.rows.nonzero().view(-1), y)

    @property
    def kernel(self) -> str:
        """Torch's dense product on the smaller matrix."""
        return "torch.linear (smaller matrix)"

    @property
    def flops_per_token(self) -> int:
        """Two per kept weight, zero or not."""
        return 2 * self.values.numel()


@FORMATS.register("compact")
class Compact(Format):
    """Rows and columns without any non-zero are left out; the rest stays dense.

    After a structured pattern this is the really smaller model, with an interface as wide as before: kept inputs are
    gathered and outputs scattered, which costs a copy of the activations. Elsewhere hardly any row is empty, and it
    is as large as dense.
    """

    name = "compact"
    summary = "dense without empty rows and columns, for the patterns heads, neurons and layers"
    by_row = False

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> CompactMatrix:
        """Leave out empty rows and columns."""
        present = weight != 0
        rows, columns = present.any(1), present.any(0)
        return CompactMatrix(weight[rows][:, columns].contiguous(), rows, columns)

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> CompactMatrix:
        """Rebuild from ``values``, ``rows`` and ``columns``."""
        import torch

        rows, columns = check_shape(shape)
        values, *sides = take(
            components,
            {"values": (dtype, (None, None)), "rows": (torch.bool, (rows,)), "columns": (torch.bool, (columns,))},
        )
        if tuple(values.shape) != (kept := tuple(int(side.sum()) for side in sides)):
            raise ValueError(f"values have shape {tuple(values.shape)} instead of {kept}")
        return CompactMatrix(values, *sides)

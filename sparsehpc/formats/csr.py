"""Compressed sparse rows with torch's kernels: shared by the formats ``csr`` and ``csr-int64``.

A weight is stored if it differs from zero; NaN and Inf are. The sign of a zero is not kept: -0.0 comes back as 0.0,
so decoding is exact in value and bit-exact for every weight that is not a negative zero. A column without a stored
weight contributes nothing, even where the activation is NaN or Inf (a dense product gives NaN there).
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import TYPE_CHECKING

from sparsehpc.formats.base import Stored
from sparsehpc.formats.components import check_offsets, check_shape, take

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

#: Weights converted at once where torch has no kernel for their dtype: 4 MiB in float32.
_BLOCK_WEIGHTS = 1 << 20


class Compressed(Stored):
    """Values, indices and offsets: what compressed rows, columns and block rows have in common."""

    def __init__(
        self, values: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor, shape: tuple[int, int]
    ) -> None:
        self.values, self.indices, self.offsets = values, indices, offsets
        self.shape = shape
        self.dtype = values.dtype

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values``, ``indices`` and ``offsets``."""
        return {"values": self.values, "indices": self.indices, "offsets": self.offsets}

    @property
    def flops_per_token(self) -> int:
        """Two per stored weight, zeros inside a stored block among them."""
        return 2 * self.values.numel()


class CompressedRows(Compressed):
    """Values, column indices and row offsets.

    Parameters
    ----------
    values
        Non-zeros, row by row, columns ascending.
    indices
        Column of every value, int32 or int64.
    offsets
        Start of every row and the end of the last: rows + 1, dtype of ``indices``.
    shape
        Rows, columns.
    """

    def decode(self) -> torch.Tensor:
        """The dense matrix; every zero is +0.0."""
        import torch

        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.values.device)
        rows = torch.repeat_interleave(self.offsets.diff())
        dense[rows.long(), self.indices.long()] = self.values
        return dense

    @functools.cached_property
    def _native(self) -> bool:
        """Whether torch multiplies CSR in this dtype on this device."""
        import torch

        return self.values.device.type != "cpu" or self.dtype in (torch.float32, torch.float64)

    @functools.cached_property
    def _matrix(self) -> torch.Tensor:
        return sparse_csr(self.offsets, self.indices, self.values, self.shape)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by torch's CSR kernel; where it has none for the dtype, in float32 row blocks."""
        import torch

        if 0 in (*self.shape, *x.shape):
            return x.new_zeros(x.shape[0], self.shape[0])
        if self._native:
            return (self._matrix @ x.t()).t().contiguous()
        y = torch.empty(self.shape[0], x.shape[0], dtype=torch.float32)
        columns = x.float().t()
        for first, last in row_blocks(self.offsets, _BLOCK_WEIGHTS):
            start, end = int(self.offsets[first]), int(self.offsets[last])
            block = sparse_csr(
                self.offsets[first : last + 1] - start,
                self.indices[start:end],
                self.values[start:end].float(),
                (last - first, self.shape[1]),
            )
            y[first:last] = block @ columns
        return y.t().to(x.dtype, memory_format=torch.contiguous_format)

    @property
    def kernel(self) -> str:
        """Torch's CSR product and the library behind it."""
        import torch

        if self.values.device.type != "cpu":
            return f"torch.sparse_csr ({self.values.device.type})"
        library = "MKL" if torch.backends.mkl.is_available() else "native"  # type: ignore[no-untyped-call]
        return f"torch.sparse_csr ({library})" if self._native else f"torch.sparse_csr float32 row blocks ({library})"


def encode_rows(weight: torch.Tensor, index_dtype: torch.dtype) -> CompressedRows:
    """Store the weights that differ from zero.

    Parameters
    ----------
    weight
        Dense, out_features x in_features.
    index_dtype
        Integer type of column indices and offsets.

    Raises
    ------
    ValueError
        More non-zeros or columns than the integer type can number.
    """
    import torch

    rows, columns = weight.shape
    kept = weight != 0
    offsets = torch.zeros(rows + 1, dtype=torch.int64, device=weight.device)
    offsets[1:] = kept.sum(dim=1).cumsum(0)
    nonzeros = int(offsets[-1])
    if max(nonzeros, columns) > torch.iinfo(index_dtype).max:
        raise ValueError(f"{nonzeros} non-zeros in {rows} x {columns} do not fit {index_dtype}")
    indices = column_indices(kept, offsets, index_dtype)
    return CompressedRows(weight[kept], indices, offsets.to(index_dtype), (rows, columns))


def column_indices(kept: torch.Tensor, offsets: torch.Tensor, index_dtype: torch.dtype) -> torch.Tensor:
    """Column of every True of ``kept``, row by row; found in row blocks, since torch's own list takes 16 bytes each."""
    import torch

    indices = torch.empty(int(offsets[-1]), dtype=index_dtype, device=kept.device)
    for first, last in row_blocks(offsets, _BLOCK_WEIGHTS):
        indices[int(offsets[first]) : int(offsets[last])] = kept[first:last].nonzero()[:, 1].to(index_dtype)
    return indices


def rows_from_components(
    components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype, index_dtype: torch.dtype
) -> CompressedRows:
    """Rebuild from arrays; ValueError unless they describe exactly one matrix of ``shape``."""
    rows, columns = check_shape(shape)
    values, indices, offsets = take(
        components,
        {"values": (dtype, (None,)), "indices": (index_dtype, (None,)), "offsets": (index_dtype, (rows + 1,))},
    )
    check_columns(values, indices, offsets, columns)
    return CompressedRows(values, indices, offsets, shape)


def check_columns(values: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor, columns: int) -> None:
    """Require indices that fit the values and offsets, in range and ascending in every row; ValueError otherwise."""
    if indices.numel() != values.numel():
        raise ValueError(f"{values.numel()} values but {indices.numel()} indices")
    check_offsets(offsets, values.numel(), columns)
    if indices.numel() == 0:
        return
    if int(indices.min()) < 0 or int(indices.max()) >= columns:
        raise ValueError(f"a column index lies outside 0..{columns - 1}")
    ascending = indices[1:] > indices[:-1]
    starts = offsets[1:-1].long()
    inside = starts[(starts > 0) & (starts < indices.numel())]
    ascending[inside - 1] = True  # a row may start anywhere
    if not bool(ascending.all()):
        raise ValueError("column indices do not ascend within a row")


def row_blocks(offsets: torch.Tensor, weights: int) -> list[tuple[int, int]]:
    """Cut the rows into runs of about ``weights`` stored values, at least one row each.

    >>> import torch
    >>> row_blocks(torch.tensor([0, 3, 4, 9, 9]), 5)
    [(0, 2), (2, 4)]
    """
    import torch

    blocks, first, rows = [], 0, offsets.numel() - 1
    while first < rows:
        limit = offsets[first] + weights
        last = int(torch.searchsorted(offsets, limit, right=True)) - 1
        last = min(max(last, first + 1), rows)
        blocks.append((first, last))
        first = last
    return blocks


@contextlib.contextmanager
def silent_sparse() -> Iterator[None]:
    """Hide what torch says once per process of every compressed layout: that it has been "beta" since 1.13."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Sparse \w+ tensor support is in beta state")
        yield


def sparse_csr(
    offsets: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Torch's CSR tensor over these arrays (not copied, not checked: they were checked when they were made)."""
    import torch

    with silent_sparse():
        return torch.sparse_csr_tensor(offsets, indices, values, size=shape, check_invariants=False)

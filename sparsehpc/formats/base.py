"""The contract of a storage format: encode, count every byte, multiply from the stored arrays, decode.

A format is one file in ``sparsehpc/formats/layouts``. It holds a `Format` (registered by name) and the `Stored`
object that owns the arrays. Importing it must not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sparsehpc.core.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

FORMATS: Registry[type[Format]] = Registry("variant", "sparsehpc.formats.layouts")


class BlockGrid(NamedTuple):
    """The 4-bit grid a checkpoint was published on (GGUF's Q4_1): weight = scale x code + minimum, code 0 to 15.

    The product and the sum are rounded to float32 one after the other, as GGUF's own dequantisation does it.

    Parameters
    ----------
    scales, minima
        One of each per 32 columns: rows x ceil(columns / 32), float16.
    """

    scales: torch.Tensor
    minima: torch.Tensor


class Stored(ABC):
    """One weight matrix (out_features x in_features) as it is kept in memory.

    Attributes
    ----------
    shape
        Rows, columns.
    dtype
        Type of the decoded weights.
    note
        What a reader of the tables must know of this matrix (the format `auto` chose and why, ...); may be empty.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    note: str = ""

    @abstractmethod
    def components(self) -> Mapping[str, torch.Tensor]:
        """Every array that is needed, by name (``values``, ``indices``, ``offsets``, ``mask``, ``scales``, ...)."""

    @abstractmethod
    def decode(self) -> torch.Tensor:
        """The dense matrix, out_features x in_features."""

    @abstractmethod
    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply activations (tokens x in_features) by the transposed weight: tokens x out_features.

        Runs on the stored arrays; the result has the dtype of ``x``.
        """

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the weight as `torch.nn.functional.linear` does.

        Parameters
        ----------
        x
            Activations, ... x in_features.
        bias
            One value per output feature, or None.

        Returns
        -------
        torch.Tensor
            ... x out_features, in the dtype of ``x``. Dense storage calls the same function as `torch.nn.Linear`
            and so gives the same bits.
        """
        y = self.matmul(x.reshape(-1, self.shape[1])).reshape(*x.shape[:-1], self.shape[0])
        return y if bias is None else y + bias

    @property
    @abstractmethod
    def kernel(self) -> str:
        """What `matmul` runs, for example ``torch.sparse_csr (MKL)``."""

    @property
    @abstractmethod
    def flops_per_token(self) -> int:
        """Floating-point operations `matmul` executes per token, a multiply-add counted as two."""

    def component_bytes(self) -> dict[str, int]:
        """Bytes of every array, padding included."""
        return {name: array.numel() * array.element_size() for name, array in self.components().items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(self.component_bytes().values())


class Format(ABC):
    """A way to store one weight matrix.

    Attributes
    ----------
    name
        Name in study files and tables.
    summary
        One line for lists and documentation.
    lossless
        Whether `Stored.decode` returns the encoded weights bit for bit.
    reference
        Whether the format stores the dense weights and is shown as a reference (``dense-int8``, ...).
    by_row
        Whether the arrays can be cut between rows, as `sparsehpc.formats.rows` does it.
    uses_grid
        Whether `encode_on` makes use of the 4-bit grid a checkpoint was published on.
    devices
        Devices on which `Stored.matmul` has a kernel of its own; on others a study refuses the format.
    study_buffers
        Whether the old study's accounting lost these weights (it kept CSR arrays as buffers, not parameters).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    lossless: ClassVar[bool] = True
    reference: ClassVar[bool] = False
    by_row: ClassVar[bool] = True
    uses_grid: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    study_buffers: ClassVar[bool] = False

    @classmethod
    def unsupported(cls, rows: int, columns: int, dtype: str, pattern: str) -> str | None:
        """Why a matrix cannot be stored this way, or None where it can. Asked at plan time."""
        return None

    @classmethod
    def unsupported_on(cls, device: str) -> str | None:
        """Why weights stored this way cannot be multiplied on a device, or None where they can. Asked at plan time."""
        if device in cls.devices:
            return None
        return f"{cls.name} has kernels for {' and '.join(cls.devices)} only, not for {device}"

    @classmethod
    @abstractmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> Stored:
        """Store a dense weight (out_features x in_features), zeros in place."""

    @classmethod
    def encode_on(cls, weight: torch.Tensor, pattern: str, grid: BlockGrid | None) -> Stored:
        """Store a weight of a checkpoint that was published on a 4-bit grid; most formats do not care.

        Parameters
        ----------
        weight
            Dense weight, zeros in place.
        pattern
            Pattern of the zeros.
        grid
            The grid, or None where the checkpoint has none.
        """
        return cls.encode(weight, pattern)

    @classmethod
    def chosen(cls, stored: Stored) -> str:
        """Name of the format whose `from_components` rebuilds ``stored``; one that chooses among others says which."""
        return cls.name

    @classmethod
    @abstractmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> Stored:
        """Rebuild from `Stored.components`; inconsistent arrays raise ValueError."""

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int | None:
        """Bytes of a matrix with so many non-zeros, from first principles; None if it depends on where they lie."""
        return None

    @classmethod
    def break_even_sparsity(cls, dtype: str) -> float | None:
        """Sparsity from which the format is smaller than dense in ``dtype`` (wide rows); None if never or unknown."""
        return None

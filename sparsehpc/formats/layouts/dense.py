"""Dense storage: the unpruned reference, and zeros kept in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.formats.base import FORMATS, Format, Stored
from sparsehpc.formats.components import check_shape, take

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class DenseMatrix(Stored):
    """One plain tensor, multiplied by the function that `torch.nn.Linear` calls.

    Parameters
    ----------
    weight
        out_features x in_features, contiguous.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.shape = (weight.shape[0], weight.shape[1])
        self.dtype = weight.dtype

    def components(self) -> Mapping[str, torch.Tensor]:
        """``values``: the matrix itself."""
        return {"values": self.weight}

    def decode(self) -> torch.Tensor:
        """The matrix, not copied, signs of zeros included."""
        return self.weight

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by `torch.nn.functional.linear`."""
        return self.linear(x)

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Bit-equal to `torch.nn.Linear` with this weight and bias."""
        from torch.nn.functional import linear

        return linear(x, self.weight, bias)

    @property
    def kernel(self) -> str:
        """Torch's dense product."""
        return "torch.linear"

    @property
    def flops_per_token(self) -> int:
        """Two per weight, zero or not."""
        return 2 * self.weight.numel()


class _Plain(Format):
    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> DenseMatrix:
        """Keep the tensor as it is (not copied where it is contiguous)."""
        return DenseMatrix(weight.contiguous())

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> DenseMatrix:
        """Rebuild from ``values``."""
        (weight,) = take(components, {"values": (dtype, check_shape(shape))})
        return DenseMatrix(weight)

    @classmethod
    def predicted_bytes(cls, rows: int, columns: int, nonzeros: int, dtype: str) -> int:
        """Every weight, zero or not."""
        return rows * columns * DTYPE_BYTES[dtype]


@FORMATS.register("dense")
class Dense(_Plain):
    """The unpruned model's storage."""

    name = "dense"
    summary = "one plain tensor, the baseline"


@FORMATS.register("masked")
class Masked(_Plain):
    """Pruned weights as zeros in a plain tensor: what most pruning code leaves."""

    name = "masked"
    summary = "zeros kept in place in a plain tensor: as large and as fast as dense"

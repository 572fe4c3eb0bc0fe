"""The dense weights of an assembled model on our own kernel: the baseline that a sparse format has to beat."""

from __future__ import annotations

from typing import Any

import torch

from sparsehpc.formats import kernels
from sparsehpc.formats.base import Stored
from sparsehpc.models.assemble import SharedLinear, SharedProduct
from sparsehpc.models.decode import product
from sparsehpc.models.stream import StoredLinear


class OwnDense(Stored):
    """Dense weights on our own kernel where there is one, whatever module multiplies them: the baseline to beat.

    Parameters
    ----------
    dense
        Storage whose only array is the weight.
    """

    def __init__(self, dense: Stored) -> None:
        self.weight, self.shape, self.dtype = dense.decode(), dense.shape, dense.dtype
        self._product = product(dense, None)

    def components(self) -> dict[str, torch.Tensor]:
        """``values``: the matrix itself."""
        return {"values": self.weight}

    def decode(self) -> torch.Tensor:
        """The matrix."""
        return self.weight

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply tokens x in_features."""
        return self._product(x)

    @property
    def kernel(self) -> str:
        """Our own product, or torch's where the extension was not built."""
        isa = kernels.isa()
        return "torch.linear" if isa is None else f"sparsehpc::dense ({isa})"

    @property
    def flops_per_token(self) -> int:
        """Two per weight, zero or not."""
        return 2 * self.weight.numel()


def use_own_dense(model: Any) -> None:
    """Let an assembled model multiply its dense weights with our own kernel."""
    for module in model.modules():
        owner = module.product if isinstance(module, SharedLinear) else module
        if isinstance(owner, SharedProduct | StoredLinear) and owner.stored is not None:
            arrays = owner.stored.components()
            # Only dense storage gives its one array away as the matrix.
            if set(arrays) == {"values"} and owner.stored.decode() is arrays["values"]:
                owner.stored = OwnDense(owner.stored)

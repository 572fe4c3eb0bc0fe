"""Weights that were computed in a wider type, back in the type of the model."""

from __future__ import annotations

import torch

from sparsehpc.core.errors import CellError


def rounded(values: torch.Tensor, dtype: torch.dtype, what: str) -> torch.Tensor:
    """Round computed weights to the model's type, in which they must be finite and kept ones must not vanish.

    Parameters
    ----------
    values
        Weights in float32 or float64, exact zeros where weights were removed.
    dtype
        Type of the model's weights.
    what
        Who computed which weight; named in the error.

    Raises
    ------
    CellError
        A weight is not finite, or too large for ``dtype``.
    """
    result = values.to(dtype)
    if not bool(torch.isfinite(result).all()):
        largest = torch.finfo(dtype).max
        raise CellError(f"{what} is not finite in {str(dtype).removeprefix('torch.')}, which holds up to {largest:.5g}")
    if dtype != values.dtype:
        # A kept weight too small for the type would count as removed, beyond the quota and outside the mask: it
        # becomes the smallest number of its sign instead, which is nearer to it than the next one.
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        vanished = (result == 0) & (values != 0)
        if bool(vanished.any()):
            result = torch.where(vanished, values.sign().to(dtype) * smallest, result)
    return result

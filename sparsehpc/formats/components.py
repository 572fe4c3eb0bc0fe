"""Checks of arrays that come from a file: sizes in it are never trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def take(
    components: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]]
) -> list[torch.Tensor]:
    """Return the arrays in the order of ``expected`` if they are exactly those.

    Parameters
    ----------
    components
        Arrays by name.
    expected
        By name the dtype and the shape; None stands for any length.

    Raises
    ------
    ValueError
        A missing or further array, another dtype or shape, arrays on several devices, or one that is not contiguous.
    """
    import torch

    if set(components) != set(expected):
        raise ValueError(f"expected the arrays {sorted(expected)}, got {sorted(components)}")
    arrays = []
    for name, (dtype, shape) in expected.items():
        array = components[name]
        if array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} instead of {dtype}")
        if array.ndim != len(shape) or any(
            want not in (None, have) for want, have in zip(shape, array.shape, strict=True)
        ):
            wanted = " x ".join("any" if want is None else str(want) for want in shape)
            raise ValueError(f"{name} has shape {tuple(array.shape)} instead of {wanted}")
        if array.layout is not torch.strided or not array.is_contiguous():
            raise ValueError(f"{name} is not a contiguous array")
        arrays.append(array)
    if len({array.device for array in arrays}) > 1:
        raise ValueError(f"the arrays lie on several devices: {sorted(str(array.device) for array in arrays)}")
    return arrays


def check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return a matrix shape of two non-negative integers, or raise ValueError."""
    if len(shape) != 2 or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{shape!r} is no matrix shape (rows, columns)")
    return shape


def too_many(rows: int, columns: int) -> str | None:
    """Why 32-bit offsets cannot number the weights of a matrix, or None where they can."""
    if rows * columns >= 1 << 31:
        return f"{rows} x {columns} weights cannot be numbered by 32-bit offsets"
    return None


def check_offsets(offsets: torch.Tensor, total: int, longest: int) -> None:
    """Require row offsets that start at 0, end at ``total`` and grow by 0 to ``longest``; ValueError otherwise."""
    if offsets.numel() == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != total:
        raise ValueError(f"offsets must start at 0 and end at {total}")
    # Compared, not subtracted: a difference of damaged offsets can overflow and look harmless.
    low, high = offsets[:-1], offsets[1:]
    if bool((high < low).any()) or bool((low < 0).any()) or bool((high > total).any()):
        raise ValueError(f"offsets must not decrease and must lie in 0..{total}")
    if low.numel() and int((high - low).max()) > longest:
        raise ValueError(f"a row holds more than {longest} values")

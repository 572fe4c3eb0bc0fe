"""Stack stored matrices on each other, and take rows out again, array by array: nothing is decoded.

Two names are special in `Stored.components`: ``offsets`` counts from the start of the matrix, and ``values`` and
``indices`` are cut where it says. Every other array has one entry per row. Formats of which this is not true say so
(`Format.by_row`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sparsehpc.formats.base import Format, Stored

_CUT_BY_OFFSETS = ("values", "indices")


def stack_rows(parts: Sequence[Stored], form: type[Format]) -> Stored | None:
    """One matrix of all rows of several, in their order; None where their storage does not allow it.

    Parameters
    ----------
    parts
        Matrices of equal width, dtype and format.
    form
        Their format.
    """
    import torch

    first = parts[0]
    alike = form.by_row and all(
        type(part) is type(first)
        and part.dtype == first.dtype
        and part.shape[1] == first.shape[1]
        and set(part.components()) == set(first.components())
        for part in parts
    )
    if not alike:
        return None
    stacked = {}
    for name in first.components():
        arrays = [part.components()[name] for part in parts]
        if name == "offsets":
            joined = _join_offsets(arrays)
            if joined is None:
                return None
            stacked[name] = joined
        elif len({array.shape[1:] for array in arrays}) > 1:
            return None
        else:
            stacked[name] = torch.cat(arrays)
    return form.from_components(stacked, (sum(part.shape[0] for part in parts), first.shape[1]), first.dtype)


def take_rows(stored: Stored, first: int, last: int, form: type[Format]) -> Stored:
    """Rows ``first`` to ``last`` (exclusive) as a matrix of their own, with arrays of its own.

    Raises
    ------
    ValueError
        The format is not row by row.
    """
    if not form.by_row:
        raise ValueError(f"{form.name} cannot be cut between rows")
    arrays = stored.components()
    offsets = arrays.get("offsets")
    taken = {}
    for name, array in arrays.items():
        if name == "offsets":
            taken[name] = array[first : last + 1] - array[first]
        elif offsets is not None and name in _CUT_BY_OFFSETS:
            taken[name] = array[int(offsets[first]) : int(offsets[last])].clone()
        else:
            taken[name] = array[first:last].clone()
    return form.from_components(taken, (last - first, stored.shape[1]), stored.dtype)


def _join_offsets(arrays: Sequence[torch.Tensor]) -> torch.Tensor | None:
    import torch

    joined = [arrays[0].long()]
    for array in arrays[1:]:
        joined.append(array[1:].long() + joined[-1][-1])
    whole = torch.cat(joined)
    return None if int(whole[-1]) > torch.iinfo(arrays[0].dtype).max else whole.to(arrays[0].dtype)

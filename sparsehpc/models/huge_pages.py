"""Weights beside each other in huge pages of memory.

A token reads every weight once. In pages of 4 KiB, which is what an allocator gives to arrays of a few MiB, a processor
spends part of that time looking addresses up, the more the faster the kernel is, and how much depends on where the
arrays happen to lie. In pages of 2 MiB it does not.
"""

from __future__ import annotations

import mmap
from typing import Final

import torch

from sparsehpc.formats.base import FORMATS, Stored

#: Size of a huge page on every platform that has them by `madvise`.
_PAGE_BYTES: Final = 2 << 20
#: Memory that is asked for at once; what is never written takes no room.
_CHUNK_BYTES: Final = 64 << 20
#: Arrays begin on whole cache lines.
_LINE_BYTES: Final = 64


class HugePages:
    """Room for arrays on the CPU that live as long as any of them does; elsewhere arrays stay where they are."""

    def __init__(self) -> None:
        self._mapped: mmap.mmap | None = None
        self._next = self._end = 0

    def tensor(self, array: torch.Tensor) -> torch.Tensor:
        """The array, copied into huge pages where the system has them."""
        count = array.numel() * array.element_size()
        if not count or array.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
            return array
        if self._mapped is None or self._next + count > self._end:
            self._mapped, self._next, self._end = _map(max(count, _CHUNK_BYTES))
        # A storage of its own: what moves one array (`share_memory_`) must leave the addresses of the others.
        placed = torch.frombuffer(self._mapped, dtype=array.dtype, count=array.numel(), offset=self._next)
        self._next += -(-count // _LINE_BYTES) * _LINE_BYTES
        return placed.view(array.shape).copy_(array)

    def stored(self, stored: Stored, variant: str) -> Stored:
        """A matrix of format ``variant`` with all its arrays in huge pages."""
        arrays = {name: self.tensor(array) for name, array in stored.components().items()}
        return FORMATS.get(variant).from_components(arrays, stored.shape, stored.dtype)


def _map(count: int) -> tuple[mmap.mmap, int, int]:
    """Memory for ``count`` bytes, and where whole huge pages begin and end in it."""
    size = -(-count // _PAGE_BYTES) * _PAGE_BYTES
    mapped = mmap.mmap(-1, size + _PAGE_BYTES)
    # Asked for, not promised: without free huge pages, or where they are switched off, small ones serve.
    mapped.madvise(mmap.MADV_HUGEPAGE)
    first = -torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr() % _PAGE_BYTES
    return mapped, first, first + size

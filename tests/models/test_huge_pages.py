"""Arrays in huge pages are the arrays they were, apart from each other and aligned."""

from __future__ import annotations

import pytest
import torch

from sparsehpc.formats.base import FORMATS
from sparsehpc.models import huge_pages
from sparsehpc.models.huge_pages import HugePages


def test_arrays_keep_their_bits_and_do_not_touch_each_other():
    pages = HugePages()
    given = [
        torch.randn(3, 5),
        torch.arange(7, dtype=torch.int16),
        torch.randn(70).to(torch.bfloat16),
        torch.empty(0, 4),
    ]
    placed = [pages.tensor(array) for array in given]
    for array, copy in zip(given, placed, strict=True):
        assert torch.equal(array, copy)
        assert copy.dtype == array.dtype
        assert copy.is_contiguous()
    assert all(copy.data_ptr() % 64 == 0 for copy in placed if copy.numel())
    placed[1].fill_(-1)
    assert torch.equal(placed[0], given[0])
    assert torch.equal(placed[2], given[2])


def test_what_fills_a_chunk_gets_another(monkeypatch):
    monkeypatch.setattr(huge_pages, "_CHUNK_BYTES", 2 << 20)
    pages = HugePages()
    given = [torch.full((300_000,), float(n)) for n in range(4)] + [torch.ones(1_000_000)]
    placed = [pages.tensor(array) for array in given]
    assert all(torch.equal(array, copy) for array, copy in zip(given, placed, strict=True))


def test_other_devices_are_left_alone():
    array = torch.empty(3, device="meta")
    assert HugePages().tensor(array) is array


@pytest.mark.parametrize("variant", ["bitmap", "csr16", "csr", "masked"])
def test_a_stored_matrix_is_the_same_matrix(variant):
    weight = torch.randn(12, 70)
    weight[weight.abs() < 0.7] = 0
    stored = FORMATS.get(variant).encode(weight)
    placed = HugePages().stored(stored, variant)
    assert torch.equal(placed.decode(), weight)
    assert placed.component_bytes() == stored.component_bytes()

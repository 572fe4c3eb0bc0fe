"""The automatic choice: what the rule picks, that it says so, and that it is never larger than plain bitmap."""

from __future__ import annotations

import pytest
import torch

from sparsehpc.formats.base import FORMATS
from sparsehpc.formats.rows import stack_rows, take_rows


def pruned(sparsity: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    cut = weight.abs().flatten().kthvalue(max(1, round(sparsity * weight.numel()))).values
    if sparsity:
        weight[weight.abs() <= cut] = 0
    return weight.to(dtype)


@pytest.mark.parametrize(
    ("sparsity", "dtype", "fastest", "smallest"),
    [
        (0.0, torch.float32, "dense", "dense"),
        (0.3, torch.float32, "bitmap", "bitmap"),
        (0.7, torch.float32, "bitmap", "bitmap"),
        (0.85, torch.float32, "bitmap", "bitmap"),
        (0.88, torch.float32, "csr16", "bitmap"),
        (0.9, torch.float32, "csr16", "bitmap"),
        (0.99, torch.float32, "csr16", "csr16"),
        (0.3, torch.bfloat16, "bitmap", "bitmap"),
        (0.9, torch.bfloat16, "bitmap", "bitmap"),
        (0.93, torch.bfloat16, "csr16", "bitmap"),
        (0.97, torch.bfloat16, "csr16", "csr16"),
    ],
)
def test_choice(sparsity: float, dtype: torch.dtype, fastest: str, smallest: str) -> None:
    weight = pruned(sparsity, dtype)
    for name, expected in (("auto", fastest), ("auto-size", smallest)):
        form = FORMATS.get(name)
        item = form.encode(weight)
        assert form.chosen(item) == expected
        assert item.note.startswith(f"{expected}: {'fastest' if name == 'auto' else 'smallest'} by rule, ")
        assert torch.equal(item.decode(), weight)
        again = form.from_components(dict(item.components()), item.shape, item.dtype)
        assert type(again) is type(item)


def test_patterns_get_their_own_formats() -> None:
    weight = pruned(0.0)
    order = weight.view(64, -1, 4).abs().argsort(dim=2)
    kept = weight.view(64, -1, 4).scatter(2, order[:, :, :2], 0.0).view(64, 512)
    for name in ("auto", "auto-size"):
        assert FORMATS.get(name).chosen(FORMATS.get(name).encode(kept, "2:4")) == "nm"
    one = weight.view(64, -1, 4).scatter(2, order[:, :, :3], 0.0).view(64, 512)
    for name in ("auto", "auto-size"):
        for dtype in (torch.float32, torch.bfloat16):
            assert FORMATS.get(name).chosen(FORMATS.get(name).encode(one.to(dtype), "1:4")) == "nm"
    blocks = pruned(0.0)
    blocks.view(8, 8, 64, 8)[:, :, ::2] = 0
    assert FORMATS.get("auto-size").chosen(FORMATS.get("auto-size").encode(blocks, "block8x8")) == "bsr"
    assert FORMATS.get("auto").chosen(FORMATS.get("auto").encode(blocks, "block8x8")) == "bitmap"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_by_size_never_larger_than_bitmap_or_dense(dtype: torch.dtype) -> None:
    for percent in range(0, 101, 5):
        weight = pruned(percent / 100, dtype)
        size = FORMATS.get("auto-size").encode(weight).nbytes
        assert size <= min(FORMATS.get(name).encode(weight).nbytes for name in ("bitmap", "dense", "csr16"))


def test_by_speed_never_larger_than_dense() -> None:
    for percent in range(0, 101, 5):
        weight = pruned(percent / 100)
        assert FORMATS.get("auto").encode(weight).nbytes <= weight.numel() * 4


def test_chosen_matrices_can_be_stacked() -> None:
    parts = [FORMATS.get("auto").encode(pruned(0.5)), FORMATS.get("auto").encode(pruned(0.6))]
    whole = stack_rows(parts, FORMATS.get("auto"))
    assert whole is not None
    assert torch.equal(whole.decode(), torch.cat([part.decode() for part in parts]))
    assert torch.equal(take_rows(whole, 64, 128, FORMATS.get("auto")).decode(), parts[1].decode())

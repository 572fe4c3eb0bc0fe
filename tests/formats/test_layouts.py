"""What single formats promise beyond the common contract: by eye on eight weights, then on patterns and grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsehpc.formats.base import FORMATS, BlockGrid

EIGHT = torch.tensor([[0.0, 1.5, 0.0, -2.0], [3.0, 0.0, 0.0, 0.0]])


def parts(name: str, weight: torch.Tensor, pattern: str = "unstructured") -> dict[str, list[float]]:
    item = FORMATS.get(name).encode(weight, pattern)
    return {key: array.to(torch.float64).tolist() for key, array in item.components().items()}


def test_csr_of_eight_weights() -> None:
    for name in ("csr", "csr-int64", "csr16"):
        assert parts(name, EIGHT) == {"values": [1.5, -2.0, 3.0], "indices": [1, 3, 0], "offsets": [0, 2, 3]}


def test_csc_of_eight_weights() -> None:
    assert parts("csc", EIGHT) == {"values": [3.0, 1.5, -2.0], "indices": [1, 0, 0], "offsets": [0, 1, 2, 2, 3]}


def test_bitmap_of_eight_weights() -> None:
    expected = {"values": [1.5, -2.0, 3.0], "mask": [[0b1010], [0b0001]], "offsets": [0, 2, 3]}
    assert parts("bitmap", EIGHT) == expected


def test_two_of_four_of_eight_weights() -> None:
    # The second row has one non-zero: its first zero is stored beside it.
    assert parts("nm", EIGHT, "2:4") == {"values": [[1.5, -2.0], [3.0, 0.0]], "mask": [[0b1010], [0b0011]]}


def test_one_of_four_of_eight_weights() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, -2.0, 0.0, 1.0, 0.0, 0.0]])
    assert parts("nm", weight, "1:4") == {"values": [[-2.0, 1.0]], "positions": [[0b0111]]}


def test_blocks_of_eight_weights() -> None:
    weight = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    expected = {"values": [[[1.0, 0.0], [0.0, 2.0]]], "indices": [1], "offsets": [0, 1]}
    assert parts("bsr", weight, "block2x2") == expected


def test_bitmap_bit_63_is_the_sign_of_a_word() -> None:
    weight = torch.zeros(1, 65)
    weight[0, 63], weight[0, 64] = 1.0, 2.0
    assert parts("bitmap", weight)["mask"] == [[-(2.0**63), 1]]
    assert torch.equal(FORMATS.get("bitmap").encode(weight).decode(), weight)


def test_bytes_per_weight_by_hand() -> None:
    # 768 x 3072 at 30 %: 1,651,507 kept; words 768 x 48 x 8; offsets 769 x 4.
    form = FORMATS.get("bitmap")
    assert form.predicted_bytes(768, 3072, 1_651_507, "float32") == 1_651_507 * 4 + 294_912 + 3_076
    assert form.predicted_bytes(768, 3072, 1_651_507, "float32") / (768 * 3072 * 4) == pytest.approx(0.7316, abs=1e-4)
    assert FORMATS.get("csr").predicted_bytes(768, 3072, 1_651_507, "float32") / (768 * 3072 * 4) > 1.4


@pytest.mark.parametrize(
    ("name", "float32", "float16"),
    [
        ("csr", 1 / 2, 2 / 3),
        ("csr-int64", 2 / 3, 4 / 5),
        ("csr16", 1 / 3, 1 / 2),
        ("bitmap", 1 / 32, 1 / 16),
        ("csc", 1 / 2, 2 / 3),
    ],
)
def test_break_even_sparsities(name: str, float32: float, float16: float) -> None:
    assert FORMATS.get(name).break_even_sparsity("float32") == pytest.approx(float32)
    assert FORMATS.get(name).break_even_sparsity("float16") == pytest.approx(float16)


def test_csr_int64_is_what_torch_stores() -> None:
    weight = torch.randn(9, 33, generator=torch.Generator().manual_seed(0))
    weight[weight.abs() < 0.7] = 0
    item = FORMATS.get("csr-int64").encode(weight)
    theirs = item._matrix.to_dense().to_sparse_csr()
    assert item.nbytes == sum(
        part.numel() * part.element_size() for part in (theirs.values(), theirs.col_indices(), theirs.crow_indices())
    )
    assert torch.equal(item.components()["indices"], theirs.col_indices())


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "3:4", "2:8", "1:16"])
@pytest.mark.parametrize("columns", [16, 48, 64, 80, 208])
def test_keep_n_of_m(pattern: str, columns: int) -> None:
    keep, of = map(int, pattern.split(":"))
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(7, columns // of, of, generator=generator)
    order = weight.abs().argsort(dim=2, descending=True)
    weight = weight.scatter(2, order[:, :, keep:], 0.0)
    weight[2] = 0
    weight[3, 0, :] = 0
    weight = weight.reshape(7, columns)
    item = FORMATS.get("nm").encode(weight, pattern)
    assert torch.equal(item.decode(), weight)
    assert item.components()["values"].shape == (7, columns // of * keep)
    assert "offsets" not in item.components()
    for tokens in (1, 2, 5, 40):
        x = torch.randn(tokens, columns, generator=generator)
        torch.testing.assert_close(item.matmul(x), x @ weight.t(), rtol=1e-4, atol=1e-4)
    again = FORMATS.get("nm").from_components(dict(item.components()), item.shape, item.dtype)
    assert torch.equal(again.decode(), weight)


def test_keep_n_of_m_refuses_what_is_not_pruned_so() -> None:
    with pytest.raises(ValueError, match="holds more than 2"):
        FORMATS.get("nm").encode(torch.ones(2, 8), "2:4")
    with pytest.raises(ValueError, match="do not divide"):
        FORMATS.get("nm").encode(torch.zeros(2, 6), "2:4")
    with pytest.raises(ValueError, match="keep N of M"):
        FORMATS.get("nm").encode(torch.zeros(2, 8), "unstructured")


def gguf_grid(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, BlockGrid]:
    """A matrix as GGUF stores it in Q4_1, dequantised by GGUF's own code, and its grid."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    generator = np.random.default_rng(seed)
    raw = np.zeros((rows, columns // 32, 20), dtype=np.uint8)
    scales = generator.uniform(0.001, 0.02, (rows, columns // 32)).astype(np.float16)
    minima = generator.uniform(-0.15, -0.01, (rows, columns // 32)).astype(np.float16)
    raw[:, :, 0:2] = scales[:, :, None].view(np.uint8)
    raw[:, :, 2:4] = minima[:, :, None].view(np.uint8)
    raw[:, :, 4:] = generator.integers(0, 256, (rows, columns // 32, 16), dtype=np.uint8)
    weight = dequantize(raw.reshape(rows, -1), GGMLQuantizationType.Q4_1).reshape(rows, columns)
    return torch.from_numpy(weight.copy()), BlockGrid(torch.from_numpy(scales), torch.from_numpy(minima))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("sparsity", "bits"), [(0.3, 4.8), (0.5, 4.0), (0.7, 3.2)])
def test_bitmap_q4_is_bit_exact_and_smaller_than_its_source(sparsity: float, bits: float, dtype: torch.dtype) -> None:
    weight, grid = gguf_grid(64, 576)
    pruned = weight.to(dtype)
    pruned[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < sparsity] = 0
    item = FORMATS.get("bitmap-q4").encode_on(pruned, "unstructured", grid)
    assert torch.equal(item.decode(), pruned)
    assert item.note == "bit-exact on the checkpoint's own grid"
    assert item.nbytes * 8 / weight.numel() == pytest.approx(bits, abs=0.15)
    assert item.nbytes < 20 * weight.numel() // 32


def test_bitmap_q4_says_how_many_weights_it_moved() -> None:
    weight, grid = gguf_grid(4, 64)
    weight[0, :3] += 0.3 * grid.scales[0, 0].float()
    item = FORMATS.get("bitmap-q4").encode_on(weight, "unstructured", grid)
    assert item.note == "3 of 256 weights rounded to the checkpoint's own grid"
    error = (item.decode() - weight).abs() / grid.scales.float().repeat_interleave(32, dim=1)
    assert float(error.max()) < 0.5


def test_dense_q4_on_the_source_grid_is_the_source() -> None:
    weight, grid = gguf_grid(8, 96)
    item = FORMATS.get("dense-q4").encode_on(weight, "none", grid)
    assert torch.equal(item.decode(), weight)
    assert item.nbytes * 8 == 5 * weight.numel()


def test_grids_that_do_not_fit_are_refused() -> None:
    weight, grid = gguf_grid(8, 96)
    for bad in (
        BlockGrid(grid.scales[:, :2], grid.minima[:, :2]),
        BlockGrid(grid.scales.float(), grid.minima.float()),
        BlockGrid(grid.scales * float("nan"), grid.minima),
    ):
        for name in ("bitmap-q4", "dense-q4"):
            with pytest.raises(ValueError, match="grid"):
                FORMATS.get(name).encode_on(weight, "unstructured", bad)


@pytest.mark.parametrize("name", ["dense-int8", "dense-q4", "bitmap-int8", "bitmap-q4"])
def test_codes_cannot_say_nan(name: str) -> None:
    weight = torch.ones(2, 64)
    weight[1, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        FORMATS.get(name).encode(weight)


@pytest.mark.parametrize("name", ["dense-int8", "bitmap-int8"])
def test_int8_errs_by_half_a_step(name: str) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    item = FORMATS.get(name).encode(weight)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((item.decode() - weight).abs() <= step * 0.5001).all())


def test_dense_linear_has_the_bits_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    x = torch.randn(2, 5, 96, generator=generator)
    for name in ("dense", "masked"):
        item = FORMATS.get(name).encode(linear.weight.detach())
        assert torch.equal(item.linear(x, linear.bias), linear(x))


@pytest.mark.parametrize("name", ["csr", "csr-int64", "csc", "csr16", "bitmap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_do_not_depend_on_threads(name: str, dtype: torch.dtype) -> None:
    weight = torch.randn(300, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[weight.abs() < 0.7] = 0
    item = FORMATS.get(name).encode(weight)
    before = torch.get_num_threads()
    try:
        for tokens in (1, 3, 40):
            x = torch.randn(tokens, 500, generator=torch.Generator().manual_seed(1)).to(dtype)
            torch.set_num_threads(1)
            one = item.matmul(x)
            torch.set_num_threads(2)
            assert torch.equal(item.matmul(x), one)
    finally:
        torch.set_num_threads(before)

"""What every storage format must do, whatever it is: a new file in formats/layouts is tested at once."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.formats.base import FORMATS, Format, Stored
from sparsehpc.formats.packed import Packed

NAMES = FORMATS.names()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PATTERNS = ("unstructured", "2:4", "4:8", "1:4", "block8x8", "block16x16", "block1x1")
WIDTHS = [*range(1, 35), 47, 48, 49, 63, 64, 65, 66, 96, 100, 127, 128, 129, 191, 192, 193, 199, 200]

#: Rounding of one product sum: k terms in float32 err by at most (k + 2) * 2^-24 * sum |terms|; the result is rounded
#: once more to the dtype of x. Kernels may also round decoded weights of a lossy format to the dtype once.
ACCUMULATION_EPS = 2.0**-24


def pattern_of(form: type[Format], rows: int, columns: int, dtype: str) -> str | None:
    return next((p for p in PATTERNS if form.unsupported(rows, columns, dtype, p) is None), None)


def impose(weight: torch.Tensor, pattern: str) -> torch.Tensor:
    """Set weights to zero so that the pattern holds (keep N of M: the largest)."""
    if ":" in pattern:
        keep, group = map(int, pattern.split(":"))
        grouped = weight.reshape(-1, group)
        order = grouped.abs().argsort(dim=1, descending=True, stable=True)
        grouped = grouped.scatter(1, order[:, keep:], 0.0)
        return grouped.reshape(weight.shape)
    return weight


def matrix(
    rows: int, columns: int, sparsity: float, dtype: str, seed: int = 0, pattern: str = "unstructured"
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight[torch.rand(rows, columns, generator=generator) < sparsity] = 0
    return impose(weight, pattern).to(DTYPES[dtype])


def stored(name: str, weight: torch.Tensor) -> Stored:
    form = FORMATS.get(name)
    dtype = next(key for key, value in DTYPES.items() if value == weight.dtype)
    pattern = pattern_of(form, *weight.shape, dtype)
    if pattern is None:
        pytest.skip(form.unsupported(*weight.shape, dtype, "unstructured") or "")
    return form.encode(impose(weight, pattern), pattern)


def wanted(name: str, weight: torch.Tensor) -> torch.Tensor:
    form = FORMATS.get(name)
    dtype = next(key for key, value in DTYPES.items() if value == weight.dtype)
    return impose(weight, pattern_of(form, *weight.shape, dtype) or "unstructured")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def assert_round_trip(name: str, weight: torch.Tensor) -> None:
    item = stored(name, weight)
    weight = wanted(name, weight)
    decoded = item.decode()
    assert decoded.shape == weight.shape == tuple(item.shape)
    assert decoded.dtype == weight.dtype == item.dtype
    again = FORMATS.get(name).from_components(dict(item.components()), item.shape, item.dtype)
    assert torch.equal(bits(again.decode()), bits(decoded))
    if FORMATS.get(name).lossless:
        # + 0.0 turns -0.0 into 0.0 and leaves every other bit: the sign of a zero is not part of the promise.
        same = torch.equal(bits(decoded + 0.0), bits(weight + 0.0))
        assert same, (name, (bits(decoded) != bits(weight)).nonzero()[:3])
    else:
        if not FORMATS.get(name).reference:
            assert not bool(decoded[weight == 0].any()), "a pruned weight came back"
        # No coarser than 16 levels between the row's extremes (0 among them), half a level of error; the grid itself
        # is rounded to float16 and the result to the dtype.
        ends = torch.cat([weight.double(), weight.new_zeros(weight.shape[0], 1).double()], dim=1)
        span = ends.amax(dim=1, keepdim=True) - ends.amin(dim=1, keepdim=True)
        assert bool(((decoded.double() - weight.double()).abs() <= span * (1 / 30 + 2.0**-7)).all())


def assert_matmul(item: Stored, x: torch.Tensor, context: object = None) -> None:
    """Compare with float64; codes are decoded in float32, so their kernels may skip the rounding to the dtype."""
    dense = item.decode().double()
    y = item.matmul(x)
    assert y.shape == (x.shape[0], item.shape[0])
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    expected = x.double() @ dense.t()
    scale = x.double().abs() @ dense.abs().t()
    terms = int((dense != 0).sum(dim=1).max()) if dense.numel() else 0
    eps = torch.finfo(x.dtype).eps / 2
    accumulation = min(ACCUMULATION_EPS, eps) if x.dtype == torch.float64 else ACCUMULATION_EPS
    tolerance = (terms + 2) * accumulation * scale + 2 * eps * expected.abs() + 1e-30
    if item.component_bytes().get("scales") or "dense-bf16" in str(context):
        tolerance = tolerance + eps * scale
    assert bool(((y.double() - expected).abs() <= tolerance).all()), (
        context,
        item.kernel,
        float(((y.double() - expected).abs() / tolerance).max()),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 1.0])
def test_round_trip_and_product(name: str, dtype: str, sparsity: float) -> None:
    weight = matrix(37, 192, sparsity, dtype)
    assert_round_trip(name, weight)
    item = stored(name, weight)
    for tokens in (0, 1, 2, 3, 4, 5, 7, 16, 33, 64):
        x = torch.randn(tokens, 192, generator=torch.Generator().manual_seed(tokens)).to(DTYPES[dtype])
        assert_matmul(item, x, (name, dtype, sparsity, tokens))


@pytest.mark.parametrize("name", NAMES)
def test_every_width(name: str) -> None:
    for columns in WIDTHS:
        dtype = ("float32", "bfloat16", "float16")[columns % 3]
        form = FORMATS.get(name)
        if pattern_of(form, 5, columns, dtype) is None:
            continue
        weight = matrix(5, columns, 0.5, dtype, seed=columns)
        assert_round_trip(name, weight)
        for tokens in (1, 3, 17):
            x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(columns)).to(DTYPES[dtype])
            assert_matmul(stored(name, weight), x, (name, dtype, columns, tokens))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [65472, 65535, 65536, 65537, 65600])
def test_wide_rows(name: str, columns: int) -> None:
    weight = matrix(3, columns, 0.999, "float32")
    weight[0, -1] = 3.0
    weight[1] = 0
    weight[2, 0] = -2.0
    assert_round_trip(name, weight)
    x = torch.randn(2, columns, generator=torch.Generator().manual_seed(1))
    assert_matmul(stored(name, weight), x[:1])
    assert_matmul(stored(name, weight), x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "columns"), [(0, 64), (1, 64), (1, 1), (0, 1), (64, 16), (2, 80)])
def test_few_rows(name: str, dtype: str, rows: int, columns: int) -> None:
    for kind in ("full", "empty", "one"):
        weight = torch.zeros(rows, columns, dtype=DTYPES[dtype])
        if kind == "full":
            weight = matrix(rows, columns, 0.0, dtype) + 8
        elif kind == "one" and rows:
            weight[rows // 2, columns // 2] = -1.5
        assert_round_trip(name, weight)
        x = torch.randn(3, columns, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
        for tokens in (0, 1, 3):
            assert_matmul(stored(name, weight), x[:tokens], (name, kind))


@pytest.mark.parametrize("name", NAMES)
def test_full_and_empty_rows_side_by_side(name: str) -> None:
    weight = matrix(32, 128, 0.0, "float32")
    weight[1::2] = 0
    weight[4] = 0
    assert_round_trip(name, weight)
    assert_matmul(stored(name, weight), torch.randn(2, 128, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", [name for name in NAMES if FORMATS.get(name).lossless])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_bit_of_odd_values_survives(name: str, dtype: str) -> None:
    values = [math.inf, -math.inf, math.nan, torch.finfo(DTYPES[dtype]).tiny, torch.finfo(DTYPES[dtype]).max, -0.0]
    weight = torch.zeros(16, 64, dtype=DTYPES[dtype])
    for position, value in enumerate(values):
        weight[position, 7 * position] = value
    weight[6, 3] = torch.finfo(DTYPES[dtype]).smallest_normal / 8  # subnormal
    assert_round_trip(name, weight)


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_inf_in_activations_reach_every_row_that_reads_them(name: str) -> None:
    weight = matrix(24, 64, 0.5, "float32", seed=3)
    item = stored(name, weight)
    decoded = item.decode()
    for bad in (math.nan, math.inf):
        x = torch.ones(2, 64)
        x[1, 17] = bad
        for tokens in (slice(1, 2), slice(0, 2)):
            y = item.matmul(x[tokens])
            reads = decoded[:, 17] != 0
            assert bool((~y[-1].isfinite())[reads].all())
            clean = x[tokens].clone()
            clean[:, 17] = 0
            rest = item.matmul(clean)[-1]
            finite = y[-1].isfinite()
            torch.testing.assert_close(y[-1][finite], rest[finite])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 1.0])
def test_bytes_are_what_first_principles_say(name: str, dtype: str, sparsity: float) -> None:
    form = FORMATS.get(name)
    weight = wanted(name, matrix(48, 320, sparsity, dtype))
    item = stored(name, weight)
    assert item.nbytes == sum(item.component_bytes().values())
    storages = {
        array.untyped_storage().data_ptr(): array.untyped_storage().nbytes() for array in item.components().values()
    }
    assert sum(storages.values()) == item.nbytes, "memory is held that the accounting does not show"
    predicted = form.predicted_bytes(48, 320, int((weight != 0).sum()), dtype)
    if predicted is not None:
        assert item.nbytes == predicted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_break_even_is_where_bytes_cross(name: str, dtype: str) -> None:
    form = FORMATS.get(name)
    point = form.break_even_sparsity(dtype)
    if point is None:
        return
    assert 0 <= point < 1
    rows, columns = 1 << 12, 1 << 12  # large: offsets weigh nothing
    dense = rows * columns * DTYPE_BYTES[dtype]

    def size(sparsity: float) -> int:
        nonzeros = round(rows * columns * (1 - sparsity))
        return form.predicted_bytes(rows, columns, nonzeros, dtype) or 0

    assert size(min(point + 0.01, 1.0)) < dense
    if point > 0.01:
        assert size(point - 0.01) > dense


@pytest.mark.parametrize("name", NAMES)
def test_linear_adds_the_bias_and_keeps_leading_dimensions(name: str) -> None:
    item = stored(name, matrix(24, 64, 0.5, "float32"))
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(2, 3, 64, generator=generator), torch.randn(24, generator=generator)
    y = item.linear(x, bias)
    assert y.shape == (2, 3, 24)
    torch.testing.assert_close(y, torch.nn.functional.linear(x, item.decode(), bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(item.linear(x), y - bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_product_leaves_its_inputs_alone_and_repeats(name: str) -> None:
    item = stored(name, matrix(40, 96, 0.5, "float32"))
    before = {key: array.clone() for key, array in item.components().items()}
    for tokens in (1, 5, 40):
        x = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(0))
        kept = x.clone()
        first = item.matmul(x)
        assert torch.equal(x, kept)
        assert torch.equal(first, item.matmul(x))
        strided = torch.stack([x, x], dim=2)[:, :, 0]
        assert not strided.is_contiguous()
        torch.testing.assert_close(item.matmul(strided), first, rtol=1e-5, atol=1e-5)
    for key, array in item.components().items():
        assert torch.equal(bits_or_self(array), bits_or_self(before[key]))


def bits_or_self(tensor: torch.Tensor) -> torch.Tensor:
    return bits(tensor) if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("name", NAMES)
def test_words_for_people(name: str) -> None:
    form = FORMATS.get(name)
    item = stored(name, matrix(16, 64, 0.5, "float32"))
    assert form.name == name
    assert form.summary
    assert "\n" not in form.summary
    assert item.kernel
    assert 0 <= item.flops_per_token <= 2 * 16 * 64


@pytest.mark.parametrize("name", NAMES)
def test_devices_without_a_kernel_are_refused_with_the_reason(name: str) -> None:
    form = FORMATS.get(name)
    assert form.unsupported_on("cpu") is None
    assert set(form.devices) <= {"cpu", "cuda"}
    # The compiled kernels run on processors; dense references are also there for their size and quality.
    item = stored(name, matrix(16, 64, 0.5, "float32"))
    if isinstance(item, Packed) and not form.reference:
        assert form.devices == ("cpu",)
    if "cuda" not in form.devices:
        assert form.unsupported_on("cuda") == f"{name} has kernels for cpu only, not for cuda"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 9),
    columns=st.integers(1, 200),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    seed=st.integers(0, 1 << 16),
    tokens=st.integers(0, 40),
)
def test_any_matrix(name: str, rows: int, columns: int, sparsity: float, dtype: str, seed: int, tokens: int) -> None:
    if pattern_of(FORMATS.get(name), rows, columns, dtype) is None:
        return
    weight = matrix(rows, columns, sparsity, dtype, seed)
    assert_round_trip(name, weight)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
    assert_matmul(stored(name, weight), x)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arrays_are_refused(name: str) -> None:
    form = FORMATS.get(name)
    item = stored(name, matrix(16, 64, 0.5, "float32"))
    parts = dict(item.components())
    with pytest.raises(ValueError, match="arrays"):
        form.from_components({}, item.shape, item.dtype)
    with pytest.raises(ValueError, match="arrays"):
        form.from_components({**parts, "further": torch.zeros(1)}, item.shape, item.dtype)
    with pytest.raises(ValueError, match="shape"):
        form.from_components(parts, (-1, 64), item.dtype)
    for shape in ((16, 0), (1, 64), (17, 63), (1 << 40, 64)):
        with pytest.raises(ValueError, match=r"\w"):
            form.from_components(parts, shape, item.dtype)
    for key, array in parts.items():
        wrong = {
            "another dtype": array.to(torch.complex64),
            "shorter": array.flatten()[:-1].clone().reshape(-1),
            "longer": torch.cat([array.flatten(), array.flatten()[:1]]),
            "another rank": array[None],
            "not contiguous": torch.stack([array, array], dim=-1)[..., 0],
        }
        for what, bad in wrong.items():
            try:
                form.from_components({**parts, key: bad}, item.shape, item.dtype)
            except ValueError:
                continue
            pytest.fail(f"{key}, {what}: accepted")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_arrays_give_an_error_or_a_matrix_never_a_crash(name: str, data: st.DataObject) -> None:
    form = FORMATS.get(name)
    item = stored(name, matrix(16, 64, 0.5, "float32"))
    parts = {key: array.clone() for key, array in item.components().items()}
    key = data.draw(st.sampled_from(sorted(parts)))
    raw = parts[key].view(torch.uint8).flatten() if parts[key].numel() else parts[key]
    for _ in range(data.draw(st.integers(1, 4))):
        if raw.numel():
            raw[data.draw(st.integers(0, raw.numel() - 1))] = data.draw(st.integers(0, 255))
    try:
        damaged = form.from_components(parts, item.shape, item.dtype)
    except ValueError:
        return
    assert damaged.decode().shape == item.shape
    assert damaged.matmul(torch.ones(1, 64)).shape == (1, 16)
    assert damaged.matmul(torch.ones(5, 64)).shape == (5, 16)


def test_names_can_be_listed_without_torch() -> None:
    code = (
        "import sys; from sparsehpc.formats.base import FORMATS; print(len(FORMATS.names())); "
        "[form.break_even_sparsity('float32') for _, form in FORMATS]; "
        "[form.predicted_bytes(64, 64, 2048, 'float32') for _, form in FORMATS]; "
        "[form.unsupported(64, 64, 'float32', '2:4') for _, form in FORMATS]; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "torch was imported"
    assert int(done.stdout) == len(NAMES)

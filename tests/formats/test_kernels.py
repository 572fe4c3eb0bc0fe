"""Compiled kernels against float64, for every instruction set the machine has and every strategy."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from sparsehpc.core.errors import UserError
from sparsehpc.formats import kernels
from sparsehpc.formats.base import FORMATS
from sparsehpc.formats.packed import Packed

AVAILABLE = kernels.available()
needs_kernels = pytest.mark.skipif(not AVAILABLE, reason="the extension was not built (no C compiler)")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

#: Format, pattern and the operator it runs.
CASES = [
    ("dense-bf16", "none", "dense"),
    ("dense-int8", "none", "dense_int8"),
    ("dense-q4", "none", "dense_q4"),
    ("bitmap", "unstructured", "bitmap"),
    ("nm", "2:4", "keep"),
    ("nm", "4:8", "keep"),
    ("nm", "1:4", "one_of_four"),
    ("csr16", "unstructured", "csr16"),
    ("bitmap-int8", "unstructured", "bitmap_int8"),
    ("bitmap-q4", "unstructured", "bitmap_q4"),
]


def weight_of(rows: int, columns: int, pattern: str, sparsity: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    if ":" in pattern:
        keep, of = map(int, pattern.split(":"))
        order = weight.view(rows, -1, of).abs().argsort(dim=2, descending=True)
        return weight.view(rows, -1, of).scatter(2, order[:, :, keep:], 0.0).reshape(rows, columns)
    weight[torch.rand(rows, columns, generator=generator) < sparsity] = 0
    return weight


def strategies(operator: str, tokens: int) -> list[int]:
    from sparsehpc.formats.kernels import ops

    found = [ops.AUTO, ops.TILE]
    if tokens <= ops.SMALL_TOKENS:
        found.append(ops.SMALL)
    if not operator.startswith("dense"):
        found.append(ops.LANES)
    return found


def check(item: Packed, x: torch.Tensor, isa: str) -> None:
    from sparsehpc.formats.kernels import ops, reference

    operator, arrays = item._operator
    dense = reference.weights(operator, item.shape[1], *arrays)
    expected = x.double().numpy() @ dense.T
    terms = int((dense != 0).sum(axis=1).max()) if dense.size else 0
    # Every sum of k products in float32 errs by at most (k + 2) 2^-24 times the sum of magnitudes; scales of codes
    # cost two more roundings of each weight; the result is rounded to the dtype of x.
    scale = np.abs(x.double().numpy()) @ np.abs(dense).T
    tolerance = (terms + 6) * 2.0**-24 * scale + torch.finfo(x.dtype).eps * np.abs(expected) + 1e-30
    for strategy in strategies(operator, x.shape[0]):
        y = ops.multiply(x, ops.ARRAYS[operator](x, *arrays), isa, strategy)
        assert y.dtype == x.dtype
        error = np.abs(y.double().numpy() - expected)
        assert (error <= tolerance).all(), (operator, isa, strategy, x.dtype, x.shape, item.shape, error.max())


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize(("name", "pattern", "operator"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_and_strategy(
    isa: str, name: str, pattern: str, operator: str, dtype: torch.dtype
) -> None:
    for columns, sparsity, seed in ((64, 0.5, 0), (192, 0.3, 1), (1104, 0.7, 2), (8, 0.2, 3), (120, 0.95, 4)):
        item = FORMATS.get(name).encode(weight_of(9, columns, pattern, sparsity, seed).to(dtype), pattern)
        assert isinstance(item, Packed)
        assert item._operator[0] == operator
        for tokens in (1, 2, 3, 4, 5, 8, 9, 16, 17, 35, 65):
            generator = torch.Generator().manual_seed(tokens)
            check(item, torch.randn(tokens, columns, generator=generator).to(dtype), isa)


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("name", ["dense-bf16", "bitmap", "csr16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_rows_tokens_and_columns_than_are_summed_at_once(isa: str, name: str, dtype: torch.dtype) -> None:
    item = FORMATS.get(name).encode(weight_of(205, 600, "none", 0.3, 6).to(dtype))
    assert isinstance(item, Packed)
    for tokens in (256, 257, 301):
        x = torch.randn(tokens, 600, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        check(item, x, isa)


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_width(isa: str) -> None:
    for name, pattern, _ in CASES:
        if ":" in pattern:
            continue
        for columns in (*range(1, 35), 47, 48, 49, 62, 63, 65, 66, 95, 96, 97, 127, 128, 129, 200, 1023, 1025, 1030):
            dtype = DTYPES[columns % 3]
            item = FORMATS.get(name).encode(weight_of(3, columns, pattern, 0.4, columns).to(dtype), pattern)
            assert isinstance(item, Packed)
            for tokens in (1, 3, 6):
                x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
                check(item, x, isa)


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_input_that_is_no_number_reaches_only_rows_that_read_it(isa: str, dtype: torch.dtype, value: float) -> None:
    """One token of csr16: vectors that a row does not fill look some input up all the same."""
    from sparsehpc.formats.kernels import ops

    weight = torch.ones(40, 64, dtype=dtype)
    for row in range(40):
        weight[row, row + 1 :] = 0
        weight[row, 0] = 0
    weight[39, 0] = 1
    x = torch.ones(1, 64, dtype=dtype)
    x[0, 0] = value
    operator, arrays = FORMATS.get("csr16").encode(weight)._operator  # type: ignore[attr-defined]
    y = ops.multiply(x, ops.ARRAYS[operator](x, *arrays), isa, ops.SMALL)[0].float()
    assert y[:39].tolist() == list(range(39))
    assert not y[39].isfinite()


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("name", ["bitmap", "bitmap-int8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_words_of_any_content_in_rows_that_keep_few(isa: str, name: str, dtype: torch.dtype) -> None:
    """Full words, words with one more than half, single weights; as first, second and last row of a pair."""
    weight = torch.zeros(11, 320)
    generator = torch.Generator().manual_seed(3)
    for row in range(11):
        weight[row, 64 * (row % 5) : 64 * (row % 5) + 64 - row % 2] = 1
        weight[row, 64 * ((row + 2) % 5) : 64 * ((row + 2) % 5) + row + 25] = 1
        weight[row, row] = 1
    weight *= torch.randn(11, 320, generator=generator)
    item = FORMATS.get(name).encode(weight.to(dtype))
    assert isinstance(item, Packed)
    for x_dtype in DTYPES:
        check(item, torch.randn(1, 320, generator=generator).to(x_dtype), isa)


@needs_kernels
@pytest.mark.parametrize("columns", [64, 192])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_input_that_is_no_number_and_bitmap_rows_that_keep_few(
    columns: int, dtype: torch.dtype, value: float
) -> None:
    """Lanes without a weight look some input up too, and values of the next row lie behind those of this one."""
    from sparsehpc.formats.kernels import ops

    if "avx512-vbmi2" not in AVAILABLE:
        pytest.skip("other instruction sets multiply by zeros in place, which gives no number, as dense weights do")
    weight = torch.zeros(27, columns, dtype=dtype)
    for row in range(26):
        weight[row, 1 : row + 1] = 1
    weight[26, 0] = 1
    x = torch.ones(1, columns, dtype=dtype)
    x[0, 0] = value
    operator, arrays = FORMATS.get("bitmap").encode(weight)._operator  # type: ignore[attr-defined]
    y = ops.multiply(x, ops.ARRAYS[operator](x, *arrays), "avx512-vbmi2", ops.SMALL)[0].float()
    assert y[:26].tolist() == list(range(26))
    assert not y[26].isfinite()
    weight[26, 0] = value
    operator, arrays = FORMATS.get("bitmap").encode(weight)._operator  # type: ignore[attr-defined]
    ones = torch.ones(1, columns, dtype=dtype)
    y = ops.multiply(ones, ops.ARRAYS[operator](ones, *arrays), "avx512-vbmi2", ops.SMALL)[0].float()
    assert y[:26].tolist() == list(range(26))


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("columns", [65535, 65536])
def test_widest_rows(isa: str, columns: int) -> None:
    from sparsehpc.formats.kernels import ops

    weight = torch.zeros(2, columns)
    weight[0, -1], weight[0, 0], weight[1, columns // 2] = 3.0, 1.0, -2.0
    x = torch.randn(20, columns, generator=torch.Generator().manual_seed(0))
    for name in ("bitmap", "csr16"):
        item = FORMATS.get(name).encode(weight)
        operator, arrays = item._operator  # type: ignore[attr-defined]
        for tokens in (1, 20):
            for strategy in strategies(operator, tokens):
                y = ops.multiply(x[:tokens], ops.ARRAYS[operator](x, *arrays), isa, strategy)
                torch.testing.assert_close(y, x[:tokens] @ weight.t(), rtol=1e-6, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
def test_mixed_dtypes_of_weights_and_activations(isa: str) -> None:
    for stored in DTYPES:
        for name in ("bitmap", "csr16", "dense-bf16"):
            item = FORMATS.get(name).encode(weight_of(12, 160, "none", 0.5, 7).to(stored))
            assert isinstance(item, Packed)
            for dtype in DTYPES:
                for tokens in (1, 3, 9):
                    x = torch.randn(tokens, 160, generator=torch.Generator().manual_seed(1)).to(dtype)
                    check(item, x, isa)


@needs_kernels
@pytest.mark.parametrize("isa", AVAILABLE)
def test_rows_do_not_depend_on_threads_or_on_what_lies_behind_them(isa: str) -> None:
    from sparsehpc.formats.kernels import ops

    before = torch.get_num_threads()
    try:
        # At 0.6 neighbouring rows lie on both sides of where one token is computed another way.
        for (name, pattern, operator), sparsity in itertools.product(CASES, (0.5, 0.6)):
            weight = weight_of(301, 576, pattern, sparsity, 5)
            arrays = FORMATS.get(name).encode(weight, pattern)._operator[1]  # type: ignore[attr-defined]
            for tokens in (1, 3, 20):
                x = torch.randn(tokens, 576, generator=torch.Generator().manual_seed(1))
                matrix = ops.ARRAYS[operator](x, *arrays)
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(ops.multiply(x, matrix, isa))
                assert torch.equal(results[0], results[1])
                assert torch.equal(results[0], results[2])
            # The last row, which nothing lies behind, computed as the first of two: the same bits.
            if not name.startswith("dense"):
                twice = torch.cat([weight[-1:], weight[:1]])
                x = torch.randn(1, 576, generator=torch.Generator().manual_seed(1))
                alone = FORMATS.get(name).encode(twice, pattern)._operator[1]  # type: ignore[attr-defined]
                whole = ops.multiply(x, ops.ARRAYS[operator](x, *arrays), isa)
                assert float(ops.multiply(x, ops.ARRAYS[operator](x, *alone), isa)[0, 0]) == float(whole[0, -1])
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_operators_are_known_to_torch() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, pattern, operator in CASES:
        item = FORMATS.get(name).encode(weight_of(8, 64, pattern, 0.5, 0), pattern)
        assert isinstance(item, Packed)
        op = getattr(torch.ops.sparsehpc, operator).default
        x = torch.ones(3, 64)
        torch.library.opcheck(op, (x, *item._operator[1]), test_utils=("test_schema", "test_faketensor"))
        with FakeTensorMode() as mode:
            fake = op(mode.from_tensor(x), *(mode.from_tensor(array) for array in item._operator[1]))
        assert tuple(fake.shape) == (3, 8)


@needs_kernels
def test_copies_read_their_own_arrays_and_gradients_are_not_lost_silently() -> None:
    weight = weight_of(8, 64, "none", 0.5, 0)
    item = FORMATS.get("bitmap").encode(weight, "unstructured")
    x = torch.ones(1, 64)
    want = item.matmul(x)
    again = copy.deepcopy(item)
    again.components()["values"].mul_(2)
    assert torch.equal(again.matmul(x), 2 * want)
    assert torch.equal(item.matmul(x), want)
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        item.matmul(x.requires_grad_()).sum().backward()


@needs_kernels
def test_profiler_sees_the_operator() -> None:
    item = FORMATS.get("bitmap").encode(weight_of(8, 64, "none", 0.5, 0))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        item.matmul(torch.ones(1, 64))
    assert "sparsehpc::bitmap" in {event.key for event in profile.key_averages()}


@needs_kernels
def test_torch_compile_keeps_the_operator_in_one_graph() -> None:
    item = FORMATS.get("bitmap").encode(weight_of(8, 64, "none", 0.5, 0))
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: item.linear(x).relu(), backend=backend, fullgraph=True)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled(x), item.linear(x).relu())
    assert len(graphs) == 1
    assert "sparsehpc" in str(graphs[0].graph)


@needs_kernels
def test_wrong_codes_are_refused_not_run() -> None:
    module = kernels.extension()
    assert module is not None
    good = [0, 1, 0, 1, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0]
    for place, bad in ((0, 99), (1, 9), (1, -1), (2, 7), (4, 0), (4, 65537), (14, 3), (18, 9), (3, -1), (15, -1)):
        wrong = list(good)
        wrong[place] = bad
        with pytest.raises(ValueError, match=r"\w"):
            module.linear(*wrong)
    with pytest.raises(TypeError, match="19 arguments"):
        module.linear(1)
    with pytest.raises(TypeError):
        module.linear(*["text"] * 19)


@needs_kernels
def test_many_python_threads_at_once() -> None:
    item = FORMATS.get("bitmap").encode(weight_of(64, 128, "none", 0.5, 0))
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    expected, wrong = item.matmul(x), []

    def work() -> None:
        wrong.extend(1 for _ in range(50) if not torch.equal(item.matmul(x), expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def in_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
    )


def test_isa_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AVAILABLE:
        monkeypatch.setenv(kernels.ISA_VARIABLE, name)
        assert kernels.isa() == name
        item = FORMATS.get("bitmap").encode(torch.eye(64))
        assert item.kernel == f"sparsehpc::bitmap ({name})"
    monkeypatch.setenv(kernels.ISA_VARIABLE, "torch")
    assert kernels.isa() is None
    item = FORMATS.get("bitmap").encode(torch.eye(64))
    assert item.kernel == "torch.linear on decoded row blocks"
    assert torch.equal(item.matmul(torch.ones(2, 64)), torch.ones(2, 64))


def test_isa_that_does_not_exist_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.ISA_VARIABLE, "avx51")
    with pytest.raises(UserError, match=r"unknown instruction set 'avx51'; did you mean 'avx512'\?"):
        kernels.isa()


def test_isa_the_processor_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: ("avx2", "portable"))
    kernels._chosen.cache_clear()
    try:
        monkeypatch.setenv(kernels.ISA_VARIABLE, "avx512")
        with pytest.raises(UserError, match=r"avx512 is not available here \(available: avx2, portable\)"):
            kernels.isa()
    finally:
        kernels._chosen.cache_clear()


def test_without_the_extension_torch_serves() -> None:
    code = (
        "import sys; sys.modules['sparsehpc.formats.kernels._kernels'] = None\n"
        "import torch\n"
        "from sparsehpc.formats import kernels\n"
        "from sparsehpc.formats.base import FORMATS\n"
        "assert kernels.describe()['built'] is False and kernels.describe()['serves'] == 'torch'\n"
        "item = FORMATS.get('bitmap').encode(torch.eye(64))\n"
        "assert torch.equal(item.matmul(torch.ones(1, 64)), torch.ones(1, 64))\n"
        "print(item.kernel)"
    )
    done = in_process(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.linear on decoded row blocks"


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_one_openmp_library_serves_torch_and_the_kernels() -> None:
    code = (
        "from sparsehpc.formats import kernels; kernels.extension(); "
        "import torch; torch.ones(4000, 40) @ torch.ones(40, 4000); print(len(kernels.openmp_libraries()))"
    )
    done = in_process(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"

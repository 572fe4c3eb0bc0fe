"""Products of stored weights, one token and a few at a time, against the best dense product and the byte limit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.bench import Row
from jobs.bench._stack import CLOCKS, check, number, numbers, prune, read_all, settle, shapes, weights
from jobs.bench._timing import in_turns, spread
from sparsehpc.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from sparsehpc.formats.base import Stored

#: A side multiplies matrix number i with x.
Side = Callable[[int, "torch.Tensor"], "torch.Tensor"]

_DENSE_SIDES = ("torch.linear", "torch.mv", "oneDNN", "own dense")
_PARTS = ("gemv", "gemv-bfloat16", "gemv-q4", "spmm")
_SPARSITIES = (30, 50, 70, 90)
_TOKENS = (4, 16, 64, 256)


def run(options: Mapping[str, str]) -> list[Row]:
    """Measure.

    Options: ``model`` (``opt-125m``: 324 MiB of float32; ``pythia-410m``: 1.2 GB), ``parts`` (gemv+gemv-bfloat16+
    gemv-q4+spmm), ``sparsities`` (30+50+70+90), ``tokens`` (of spmm: 4+16+64+256), ``layers`` (all), ``threads``,
    ``repeats`` (11), ``clock`` (wall; cpu with one thread on a machine that others use too).
    """
    known = {"model", "parts", "sparsities", "tokens", "layers"}
    repeats, conditions = settle(options, known, "kernels")
    parts = options.get("parts", "+".join(_PARTS)).split("+")
    if wrong := [part for part in parts if part not in _PARTS]:
        raise UserError(f"suite kernels has no part {wrong[0]!r}; legal: {', '.join(_PARTS)}")
    model = options.get("model", "opt-125m")
    dense = weights(shapes(f"random:{model}", number(options, "layers", 1) if "layers" in options else None))
    rows: list[Row] = []
    for percent in numbers(options, "sparsities", _SPARSITIES):
        common = {"model": model, "params": sum(w.numel() for w in dense), "sparsity": percent / 100, **conditions}
        if "gemv" in parts:
            rows += _gemv(dense, percent, "float32", repeats, common)
        if "gemv-bfloat16" in parts:
            rows += _gemv(dense, percent, "bfloat16", repeats, common)
        if "gemv-q4" in parts:
            rows += _gemv_q4(dense, percent, repeats, common)
        if "spmm" in parts:
            for tokens in numbers(options, "tokens", _TOKENS):
                rows += _spmm(dense, percent, tokens, max(3, repeats // 2), common)
    return [{"suite": "kernels", **row} for row in rows]


def _inputs(matrices: Sequence[torch.Tensor], tokens: int) -> dict[int, torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(1)
    widths = sorted({matrix.shape[1] for matrix in matrices})
    return {width: torch.randn(tokens, width, generator=generator).to(matrices[0].dtype) for width in widths}


def _dense_sides(matrices: Sequence[torch.Tensor], tokens: int) -> dict[str, Side]:
    """Every dense product there is: the best of them is the baseline."""
    import torch
    from torch.nn.functional import linear

    from sparsehpc.formats import kernels
    from sparsehpc.formats.kernels import ops

    sides: dict[str, Side] = {"torch.linear": lambda i, x: linear(x, matrices[i])}
    if tokens == 1:
        sides["torch.mv"] = lambda i, x: torch.mv(matrices[i], x[0])[None]
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        product = torch.ops.mkldnn._linear_pointwise.default
        sides["oneDNN"] = lambda i, x: product(x, matrices[i], None, "none", [], "")
    if kernels.isa() is not None:
        own = [ops.Product(ops.dense(matrix, matrix), matrix.shape[1]) for matrix in matrices]
        sides["own dense"] = lambda i, x: own[i](x)
    return sides


def _stored_side(stored: Sequence[Stored]) -> Side:
    return lambda i, x: stored[i].matmul(x)


def _time(
    sides: Mapping[str, Side],
    matrices: Sequence[torch.Tensor],
    inputs: Mapping[int, torch.Tensor],
    further: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: str,
) -> dict[str, list[float]]:
    xs = [inputs[matrix.shape[1]] for matrix in matrices]

    def stream(side: Side) -> Callable[[], None]:
        def run_all() -> None:
            for index, x in enumerate(xs):
                side(index, x)

        return run_all

    return in_turns({**{name: stream(side) for name, side in sides.items()}, **further}, repeats, CLOCKS[clock])


def _row(work: str, baseline: str, times: Mapping[str, list[float]], ours: str, theirs: str, **more: Any) -> Row:
    (mine, mine_low, mine_high), (other, other_low, other_high) = spread(times[ours]), spread(times[theirs])
    return {
        "work": work,
        "baseline": baseline,
        "ratio": other / mine,
        "baseline_is": theirs,
        "seconds": mine,
        "seconds_q1": mine_low,
        "seconds_q3": mine_high,
        "baseline_seconds": other,
        "baseline_seconds_q1": other_low,
        "baseline_seconds_q3": other_high,
        "repeats": len(times[ours]),
        **more,
    }


def _best_dense(times: Mapping[str, list[float]]) -> str:
    return min((name for name in _DENSE_SIDES if name in times), key=lambda name: spread(times[name])[0])


def _gemv(dense: Sequence[torch.Tensor], percent: int, dtype: str, repeats: int, common: Row) -> list[Row]:
    from sparsehpc.formats.base import FORMATS

    matrices = list(prune(dense, percent, dtype))
    names = ("auto", "bitmap", "csr16") + (("csr",) if dtype == "float32" else ())
    stored = {name: [FORMATS.get(name).encode(matrix) for matrix in matrices] for name in names}
    sides = _dense_sides(matrices, 1)
    for name in names:
        sides[name if name != "csr" else "torch CSR"] = _stored_side(stored[name])
    if dtype == "float32":
        sides["scipy CSR"] = _scipy_side(stored["csr"])
    inputs = _inputs(matrices, 1)
    error = check(matrices, inputs, sides, dtype)
    limits = {
        f"byte limit {name}": read_all(stored[name], int(common["threads"])) for name in ("auto", "bitmap", "csr16")
    }
    times = _time(sides, matrices, inputs, limits, repeats, common["clock"])
    best = _best_dense(times)
    prefix = "gemv" if dtype == "float32" else f"gemv {dtype}"
    rows = []
    for name in ("auto", "bitmap", "csr16"):
        nbytes = sum(item.nbytes for item in stored[name])
        details = {
            "dtype": dtype,
            "tokens": 1,
            "bytes": nbytes,
            "baseline_bytes": sum(m.numel() * m.element_size() for m in matrices),
            "gb_per_s": nbytes / spread(times[name])[0] / 1e9,
            "largest_error": error,
            "chosen": _chosen(stored[name]) if name == "auto" else name,
            **common,
        }
        rows.append(_row(f"{prefix} {name}", "best dense", times, name, best, **details))
        rows.append(_row(f"{prefix} {name}", "byte limit", times, name, f"byte limit {name}", **details))
        if name == "auto":
            others = [other for other in (*_DENSE_SIDES, "torch CSR", "scipy CSR") if other in times]
            rows += [_row(f"{prefix} {name}", other, times, name, other, **details) for other in others]
    del matrices, stored, sides, limits
    gc.collect()
    return rows


def _scipy_side(stored: Sequence[Stored]) -> Side:
    import torch
    from scipy.sparse import csr_array

    matrices = []
    for item in stored:
        parts = item.components()
        arrays = tuple(parts[name].numpy() for name in ("values", "indices", "offsets"))
        matrices.append(csr_array(arrays, shape=item.shape, copy=False))
    return lambda i, x: torch.from_numpy(matrices[i] @ x[0].numpy())[None]


def _chosen(stored: Sequence[Stored]) -> str:
    from sparsehpc.formats.base import FORMATS

    names = [FORMATS.get("auto").chosen(item) for item in stored]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))


def _gemv_q4(dense: Sequence[torch.Tensor], percent: int, repeats: int, common: Row) -> list[Row]:
    from sparsehpc.formats.base import FORMATS
    from sparsehpc.formats.quantised import fit_grid

    source = [FORMATS.get("dense-q4").encode_on(weight, "none", fit_grid(weight)) for weight in dense]
    decoded = [item.decode() for item in source]
    matrices = list(prune(decoded, percent, "float32"))
    grids = [fit_grid(weight) for weight in dense]
    stored = [FORMATS.get("bitmap-q4").encode_on(m, "unstructured", g) for m, g in zip(matrices, grids, strict=True)]
    inputs = _inputs(matrices, 1)
    error = check(matrices, inputs, {"bitmap-q4": _stored_side(stored)}, "float32")
    check(decoded, inputs, {"dense-q4": _stored_side(source)}, "float32")
    exact = all(bool((item.decode() == matrix).all()) for item, matrix in zip(stored, matrices, strict=True))
    sides = {"bitmap-q4": _stored_side(stored), "own dense-q4": _stored_side(source)}
    limits = {"byte limit bitmap-q4": read_all(stored, int(common["threads"]))}
    times = _time(sides, matrices, inputs, limits, repeats, common["clock"])
    details = {
        "dtype": "float32",
        "tokens": 1,
        "bytes": sum(item.nbytes for item in stored),
        "baseline_bytes": sum(item.nbytes for item in source),
        "bit_exact": exact,
        "largest_error": error,
        **common,
    }
    return [
        _row("gemv bitmap-q4", "own dense-q4", times, "bitmap-q4", "own dense-q4", **details),
        _row("gemv bitmap-q4", "byte limit", times, "bitmap-q4", "byte limit bitmap-q4", **details),
    ]


def _spmm(dense: Sequence[torch.Tensor], percent: int, tokens: int, repeats: int, common: Row) -> list[Row]:
    from sparsehpc.formats.base import FORMATS

    matrices = list(prune(dense, percent, "float32"))
    stored = {name: [FORMATS.get(name).encode(m) for m in matrices] for name in ("auto", "bitmap", "csr16")}
    inputs = _inputs(matrices, tokens)
    sides = _dense_sides(matrices, tokens) | {name: _stored_side(items) for name, items in stored.items()}
    error = check(matrices, inputs, sides, "float32")
    times = _time(sides, matrices, inputs, {}, repeats, common["clock"])
    best = _best_dense(times)
    details = {"dtype": "float32", "tokens": tokens, "largest_error": error, **common}
    return [_row(f"spmm N={tokens} {name}", "best dense", times, name, best, **details) for name in stored]

"""Sizes of whole models by format, and how long storing and decoding one matrix takes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jobs.bench import Row
from jobs.bench._stack import CLOCKS, TARGETS, numbers, prune, settle, weights
from jobs.bench._timing import in_turns, spread
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.core.spec import DTYPE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_SPARSITIES = (30, 50, 70, 90)
_MODELS = ("smollm2-135m", "opt-125m", "pythia-410m")
_SIZED = ("bitmap", "csr16", "csr", "csr-int64", "dense-bf16", "dense-int8", "dense-q4", "bitmap-int8")
_TIMED = ("bitmap", "csr16", "csr", "csr-int64", "bitmap-int8", "bitmap-q4", "auto", "auto-size")
_SHAPE = (3072, 768)


def run(options: Mapping[str, str]) -> list[Row]:
    """Measure.

    Options: ``sparsities`` (30+50+70+90), ``models`` (smollm2-135m+opt-125m+pythia-410m), ``threads``, ``repeats``
    (11), ``clock``. Rows named ``bytes`` hold no time: their ratio is dense bytes / our bytes of the whole model, where
    every prunable matrix has the same share of zeros and what is not prunable stays dense.
    """
    repeats, conditions = settle(options, {"sparsities", "models"}, "formats")
    percents = numbers(options, "sparsities", _SPARSITIES)
    rows: list[Row] = []
    for model in options.get("models", "+".join(_MODELS)).split("+"):
        for percent in percents:
            rows += _sizes(model, percent)
    for percent in percents:
        rows += [row | conditions for row in _times(percent, repeats, str(conditions["clock"]))]
    return [{"suite": "formats", **row} for row in rows]


def _sizes(model: str, percent: int) -> list[Row]:
    """Bytes from first principles, as `Format.predicted_bytes` gives them (tests hold it to the arrays)."""
    from sparsehpc.formats.base import FORMATS
    from sparsehpc.models.family import structure_from_config
    from sparsehpc.models.target import resolve

    config = resolve(f"random:{model}").config()
    if config is None:
        raise UserError(f"{model} is not shipped: its shapes are unknown before it is prepared")
    structure = structure_from_config(config)
    prunable = structure.prunable(TARGETS)
    rows = []
    for dtype in ("float32", "float16"):
        size = DTYPE_BYTES[dtype]
        dense = structure.params_total * size
        rest = dense - sum(parameter.numel for parameter in prunable) * size
        for name in _SIZED:
            form = FORMATS.get(name)
            total = rest
            for parameter in prunable:
                kept = parameter.numel - parameter.numel * percent // 100
                nbytes = form.predicted_bytes(parameter.shape[0], parameter.shape[1], kept, dtype)
                if nbytes is None:
                    raise SparseHPCError(f"{name} cannot say its size from the number of non-zeros")
                total += nbytes
            rows.append(
                {
                    "work": f"bytes {name}",
                    "baseline": f"dense {dtype}",
                    "ratio": dense / total,
                    "share": total / dense,
                    "bytes": total,
                    "baseline_bytes": dense,
                    "model": model,
                    "params": structure.params_total,
                    "sparsity": percent / 100,
                    "dtype": dtype,
                    "lossless": form.lossless,
                    "reference": form.reference,
                }
            )
    return rows


def _times(percent: int, repeats: int, clock: str) -> list[Row]:
    """Storing against torch's conversion to CSR, decoding against torch's conversion back."""
    import torch

    from sparsehpc.formats.base import FORMATS
    from sparsehpc.formats.csr import sparse_csr

    weight = next(prune(weights([_SHAPE]), percent, "float32"))
    stored = {name: FORMATS.get(name).encode(weight) for name in _TIMED}
    for name, item in stored.items():
        if FORMATS.get(name).lossless and not torch.equal(item.decode(), weight):
            raise SparseHPCError(f"{name} does not decode to what was stored")
    arrays = stored["csr-int64"].components()
    theirs = sparse_csr(arrays["offsets"], arrays["indices"], arrays["values"], _SHAPE)
    encode: dict[str, Callable[[], object]] = {"torch to_sparse_csr": lambda: _to_csr(weight)}
    decode: dict[str, Callable[[], object]] = {"torch to_dense": theirs.to_dense}
    for name, item in stored.items():
        encode[name] = functools.partial(FORMATS.get(name).encode, weight)
        decode[name] = item.decode
    rows = []
    for verb, sides in (("encode", encode), ("decode", decode)):
        times = in_turns(sides, repeats, CLOCKS[clock])
        baseline, *ours = sides
        other, other_low, other_high = spread(times[baseline])
        for name in ours:
            mine, low, high = spread(times[name])
            rows.append(
                {
                    "work": f"{verb} {name}",
                    "baseline": baseline,
                    "ratio": other / mine,
                    "seconds": mine,
                    "seconds_q1": low,
                    "seconds_q3": high,
                    "baseline_seconds": other,
                    "baseline_seconds_q1": other_low,
                    "baseline_seconds_q3": other_high,
                    "repeats": repeats,
                    "params": weight.numel(),
                    "sparsity": percent / 100,
                    "dtype": "float32",
                    "bytes": stored[name].nbytes,
                }
            )
    return rows


def _to_csr(weight: torch.Tensor) -> torch.Tensor:
    from sparsehpc.formats.csr import silent_sparse

    with silent_sparse():
        return weight.to_sparse_csr()

"""All prunable matrices of a model's shape, random, pruned by magnitude: what the kernel benchmarks stream through."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsehpc.core.errors import SparseHPCError, UserError

if TYPE_CHECKING:
    import torch

    from sparsehpc.formats.base import Stored

TARGETS = ("attention", "mlp")
#: Relative to the sum of magnitudes: float32 sums of a few thousand terms, and one rounding to bfloat16.
_TOLERANCE = {"float32": 2.0**-17, "bfloat16": 2.0**-7, "float16": 2.0**-9}


#: Clocks by name. Processor time counts only while the (one) thread runs: for machines that others use too.
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def settle(options: Mapping[str, str], known: set[str], suite: str) -> tuple[int, dict[str, Any]]:
    """Check option names, set and pin threads; returns the repeats and the conditions every row carries.

    Options of every suite: ``threads`` (all cores), ``repeats`` (11), ``clock`` (``wall``, or ``cpu`` with one thread).
    """
    known = known | {"threads", "repeats", "clock"}
    if wrong := set(options) - known:
        raise UserError(f"suite {suite} has no option {sorted(wrong)[0]!r}; legal: {', '.join(sorted(known))}")
    cores = sorted(os.sched_getaffinity(0))
    threads = number(options, "threads", len(cores))
    clock = options.get("clock", "wall")
    if clock not in CLOCKS or (clock == "cpu" and threads > 1):
        raise UserError(f"option clock is wall, or cpu with threads=1, not {clock!r} with threads={threads}")
    pinned = "torch" not in sys.modules
    if pinned:  # OpenMP reads this when it loads: every thread keeps a core of its own
        os.environ.update(OMP_PROC_BIND="close", OMP_PLACES="cores", OMP_NUM_THREADS=str(threads))
    import torch

    from sparsehpc.core.machine import cpu_model
    from sparsehpc.formats import kernels

    os.sched_setaffinity(0, set(cores[:threads]))
    torch.set_num_threads(threads)
    conditions = {
        "threads": threads,
        "clock": clock,
        "threads_pinned": pinned,
        "isa": kernels.isa() or "torch",
        "cpu_model": cpu_model(),
        "torch": torch.__version__,
    }
    return number(options, "repeats", 11, least=2), conditions


def number(options: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """A whole number among the options."""
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"option {name} is a whole number of at least {least}, not {text!r}")
    return int(text)


def numbers(options: Mapping[str, str], name: str, default: Sequence[int]) -> list[int]:
    """Whole numbers among the options, separated by ``+``."""
    if name not in options:
        return list(default)
    return [number({name: part}, name, 0, least=0) for part in options[name].split("+")]


def shapes(model: str, layers: int | None = None) -> list[tuple[int, int]]:
    """Out_features x in_features of every prunable weight, in module order; ``layers``: of the first ones only."""
    from sparsehpc.models.family import structure_from_config
    from sparsehpc.models.target import resolve

    config = resolve(model).config()
    if config is None:
        raise UserError(f"{model} is not shipped: its shapes are unknown before it is prepared")
    prunable = structure_from_config(config).prunable(TARGETS)
    return [
        (parameter.shape[0], parameter.shape[1])
        for parameter in prunable
        if layers is None or (parameter.layer is not None and parameter.layer < layers)
    ]


def weights(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[torch.Tensor]:
    """Random float32 matrices with a standard deviation of 0.02."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).mul_(0.02) for size in sizes]


def prune(dense: Sequence[torch.Tensor], percent: int, dtype: str) -> Iterator[torch.Tensor]:
    """Each matrix in the dtype, its ``percent`` smallest magnitudes zero."""
    import torch

    for weight in dense:
        count = weight.numel() * percent // 100
        kept = weight.clone()
        if count:
            kept.view(-1)[kept.abs().view(-1).topk(count, largest=False, sorted=False).indices] = 0
        yield kept.to(getattr(torch, dtype))


def check(
    matrices: Sequence[torch.Tensor],
    inputs: Mapping[int, torch.Tensor],
    sides: Mapping[str, Callable[[int, torch.Tensor], torch.Tensor]],
    dtype: str,
) -> float:
    """Compare one product of every matrix and side with float64; the largest error relative to the sum of magnitudes.

    Raises
    ------
    SparseHPCError
        A side computes something else.
    """
    worst = 0.0
    for index, weight in enumerate(matrices):
        x = inputs[weight.shape[1]]
        exact = x.double() @ weight.double().t()
        scale = (x.double().abs() @ weight.double().abs().t()).clamp_min(1e-30)
        for name, product in sides.items():
            error = float(((product(index, x).double() - exact).abs() / scale).max())
            if not error <= _TOLERANCE[dtype]:
                raise SparseHPCError(f"{name} errs by {error:.2g} of the sum of magnitudes in matrix {index}")
            worst = max(worst, error)
    return worst


def read_all(stored: Sequence[Stored], threads: int) -> Callable[[], object]:
    """Read every byte of every array once, with as many threads: what no product over them can beat."""
    from sparsehpc.formats import kernels

    module = kernels.extension()
    if module is None:
        raise UserError("the byte limit is measured by the compiled extension, which was not built")
    arrays = [array for item in stored for array in item.components().values()]
    places = [(array.data_ptr(), array.numel() * array.element_size()) for array in arrays]
    return lambda: [module.read(address, size, threads) for address, size in places]

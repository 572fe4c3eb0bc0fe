"""Pruning: magnitude masks, SparseGPT and Wanda against the usual implementations; every method on a whole model."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench import Row, _pruning_model
from jobs.bench._timing import interleaved
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.core.machine import return_freed_memory

if TYPE_CHECKING:
    import torch

#: Packages of the layer baselines, without what they depend on: the code that is timed needs torch alone.
_PACKAGES = ("llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "loguru", "nvidia-ml-py")
_LAYERS = ((768, 3072), (3072, 768))
_SPARSITY = 0.5
_DAMPING = 0.01
_BLOCK = 128


def run(options: Mapping[str, str]) -> list[Row]:
    """Measure.

    Options: ``threads`` (default: what torch takes), ``repeats`` (5), ``tokens`` (8192), ``package`` (yes; no does not
    try to install llm-compressor and takes the restated algorithms as the baseline), ``model`` (smollm2-135m; none
    leaves whole models out), ``rounds`` (1) over all methods on it.
    """
    import torch

    known = {"threads", "repeats", "tokens", "package", "model", "rounds"}
    if wrong := set(options) - known:
        raise UserError(f"suite pruning has no option {sorted(wrong)[0]!r}; legal: {', '.join(sorted(known))}")
    threads, repeats = int(options.get("threads", torch.get_num_threads())), int(options.get("repeats", "5"))
    torch.set_num_threads(threads)
    conditions = {"threads": threads, "torch": torch.__version__}
    rows = [_magnitude(repeats)]
    with tempfile.TemporaryDirectory() as folder:
        packaged = options.get("package", "yes") == "yes" and _install(Path(folder))
        for shape in _LAYERS:
            weight, x = _layer(*shape, int(options.get("tokens", "8192")))
            rows += [_sparsegpt(weight, x, repeats, packaged), _wanda(weight, x, repeats, packaged)]
    if (model := options.get("model", "smollm2-135m")) != "none":
        rows += _pruning_model.rows(model, int(options.get("rounds", "1")))
    return [{"suite": "pruning", **row, **conditions} for row in rows]


def _install(folder: Path) -> bool:
    """Put the packaged implementations on this process's path, for the time of the benchmark."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *_PACKAGES]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return False
    sys.path.append(str(folder))
    try:
        import llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify
        import llmcompressor.modifiers.pruning.wanda.wanda_sparsify  # noqa: F401
    except ImportError:
        return False
    return True


# -- global magnitude ---------------------------------------------------------------------------------------------


def _magnitude(repeats: int) -> Row:
    """Mask of opt-125m's 84,934,656 prunable weights, random values, 30 % of them."""
    import torch
    from torch import nn
    from torch.nn.utils import prune

    from sparsehpc.pruning.cuts import find_cuts

    torch.manual_seed(0)
    shapes = ([(768, 768)] * 4 + [(3072, 768), (768, 3072)]) * 12
    weights = [torch.randn(shape) * 0.02 for shape in shapes]
    total = sum(weight.numel() for weight in weights)
    count = total * 3 // 10
    names = [str(index) for index in range(len(weights))]

    def ours() -> list[torch.Tensor]:
        cut = find_cuts(names, lambda name: weights[int(name)], [count])[0]
        return [cut.mask(weight, index) for index, weight in enumerate(weights)]

    def baseline() -> list[torch.Tensor]:
        modules = []
        for weight in weights:
            module = nn.Module()
            module.weight = nn.Parameter(weight, requires_grad=False)
            modules.append(module)
        prune.global_unstructured(
            [(module, "weight") for module in modules], pruning_method=prune.L1Unstructured, amount=count
        )
        return [torch.as_tensor(module.weight_mask == 0) for module in modules]

    extra, masks = _peak_extra_bytes(ours)
    theirs = baseline()
    if sum(int(mask.sum()) for mask in masks) != count or sum(int(mask.sum()) for mask in theirs) != count:
        raise SparseHPCError("a magnitude mask does not have the exact count")
    # Both remove the same weights, up to which of the tied ones.
    if not torch.equal(_gone(weights, masks), _gone(weights, theirs)):
        raise SparseHPCError("the magnitude masks differ by more than ties")
    del masks, theirs
    # Where the kernel does not let us reset the peak, the figure is left out, not guessed.
    memory = {} if extra is None else {"extra_bytes_per_weight": extra / total}
    row = interleaved(ours, baseline, max(1, repeats // 2))
    return {
        "work": "magnitude mask",
        "baseline": "torch global_unstructured",
        **row,
        "params": {"weights": total, "removed": count, "dtype": "float32"},
        **memory,
    }


def _gone(weights: list[torch.Tensor], masks: list[torch.Tensor]) -> torch.Tensor:
    """Sorted magnitudes of what the masks remove."""
    import torch

    gone = [weight[mask].abs() for weight, mask in zip(weights, masks, strict=True)]
    return torch.cat(gone).sort().values


def _peak_extra_bytes(work: Callable[[], Any]) -> tuple[int | None, Any]:
    """Resident memory that a first call takes at most beyond what was in use before, its result included."""
    # What was freed and kept by the allocator would be taken again unseen.
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None, work()
    before = _status_bytes("VmRSS")
    result = work()
    return _status_bytes("VmHWM") - before, result


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise SparseHPCError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


# -- single layers ------------------------------------------------------------------------------------------------


def _layer(rows: int, columns: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and correlated inputs of very different scales."""
    import torch

    torch.manual_seed(0)
    mixing = torch.randn(columns, columns) / columns**0.5 + torch.eye(columns)
    x = torch.randn(tokens, columns) @ mixing * torch.logspace(-1, 1, columns)[torch.randperm(columns)]
    return torch.randn(rows, columns) * 0.05, x


def _sparsegpt(weight: torch.Tensor, x: torch.Tensor, repeats: int, packaged: bool) -> Row:
    import torch
    from torch import nn

    from jobs.bench import _pruning_published
    from sparsehpc.pruning.least_squares import relative_error

    hessian = x.double().T @ x.double()
    single = (2 * hessian).float()
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight, requires_grad=False)
    apply = _method("sparsegpt", weight, {"hessian": hessian})

    def restated() -> torch.Tensor:
        return _pruning_published.sparsegpt(weight, single, _SPARSITY, _BLOCK, _DAMPING)

    def package() -> torch.Tensor:
        from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight

        _, pruned = sparsify_weight(module, {module: single.clone()}, _SPARSITY, 0, 0, _BLOCK, _DAMPING, False)
        return torch.as_tensor(pruned)

    baseline = package if packaged else restated
    errors = [relative_error(weight, pruned, hessian) for pruned in (apply(), baseline())]
    if abs(errors[0] / errors[1] - 1) > 0.01:
        raise SparseHPCError(f"sparsegpt: reconstruction errors {errors} differ by more than 1 %")
    return {
        "work": f"sparsegpt {weight.shape[0]}x{weight.shape[1]}",
        "baseline": "llm-compressor sparsegpt" if packaged else "published sparsegpt, restated",
        **interleaved(apply, baseline, repeats),
        "params": _params(weight, x),
        "relative_error": errors[0],
        "baseline_relative_error": errors[1],
    }


def _wanda(weight: torch.Tensor, x: torch.Tensor, repeats: int, packaged: bool) -> Row:
    import torch
    from torch import nn

    from jobs.bench import _pruning_published

    squares = x.double().square().sum(0)
    apply = _method("wanda", weight, {"input_norm": squares.sqrt()})
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight, requires_grad=False)
    scalars = squares.float()

    def restated() -> torch.Tensor:
        return _pruning_published.wanda(weight, scalars, _SPARSITY)

    def package() -> torch.Tensor:
        from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import sparsify_weight

        return torch.as_tensor(sparsify_weight(module, {module: scalars}, _SPARSITY, 0, 0))

    baseline = package if packaged else restated
    different = int(((apply() == 0) != (baseline() == 0)).sum())
    if different > weight.numel() * 1e-5:
        raise SparseHPCError(f"wanda: {different} mask bits differ")
    return {
        "work": f"wanda {weight.shape[0]}x{weight.shape[1]}",
        "baseline": "llm-compressor wanda" if packaged else "published wanda, restated",
        **interleaved(apply, baseline, repeats * 4),
        "params": _params(weight, x),
        "mask_bits_different": different,
    }


def _method(name: str, weight: torch.Tensor, statistics: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Return our method as the pipeline calls it."""
    from sparsehpc.core.spec import Calibration, Pruning
    from sparsehpc.models.structure import Parameter
    from sparsehpc.pruning.base import Site, make_method

    text = Calibration(corpus="none", windows=1, window_tokens=1)
    method = make_method(Pruning(method=name, pattern="unstructured", sparsity=str(_SPARSITY), calibration=text))
    site = Site(Parameter("weight", tuple(weight.shape), "mlp", "linear", 0, "fc1"), 0)
    return lambda: method.apply(weight, site, statistics).weight


def _params(weight: torch.Tensor, x: torch.Tensor) -> dict[str, Any]:
    return {
        "rows": weight.shape[0],
        "columns": weight.shape[1],
        "sparsity": _SPARSITY,
        "tokens": x.shape[0],
        "dtype": str(weight.dtype).removeprefix("torch."),
    }

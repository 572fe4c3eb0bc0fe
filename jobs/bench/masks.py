"""Bits of a mask that move with the number of threads, the batch, or the order of summation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench import Row
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.core.machine import cpu_model
from sparsehpc.core.spec import Calibration

if TYPE_CHECKING:
    import numpy as np

_UNSTRUCTURED = {"pattern": "unstructured", "sparsity": "0.5"}
#: Decoder layers that are pruned: enough for a flip to reach those behind it, or all for what ranks the whole model.
_FIRST, _ALL = 4, 1 << 30
#: Ways of pruning.
WORK: dict[str, tuple[dict[str, Any], int]] = {
    "wanda": ({"method": "wanda", **_UNSTRUCTURED}, _FIRST),
    # Attention alone: conjugate gradients on the matrices of the MLP take minutes a layer.
    "wanda, refit": ({"method": "wanda", "refit": True, "targets": ("attention",), **_UNSTRUCTURED}, _FIRST),
    "ria": ({"method": "ria", **_UNSTRUCTURED}, _FIRST),
    "sparsegpt": ({"method": "sparsegpt", **_UNSTRUCTURED}, _FIRST),
    "admm": ({"method": "admm", **_UNSTRUCTURED}, 1),
    "flap, heads": ({"method": "flap", "pattern": "heads", "sparsity": "0.5"}, _ALL),
    "flap, neurons": ({"method": "flap", "pattern": "neurons", "sparsity": "0.5"}, _ALL),
    "block-influence": ({"method": "block-influence", "pattern": "layers", "sparsity": "0.5"}, _ALL),
}
_BASELINE = "one thread, one window at a time"
#: Threads, whether all windows run as one batch, and what the process's environment holds besides.
_CONDITIONS: dict[str, tuple[int, bool, dict[str, str]]] = {
    _BASELINE: (1, False, {}),
    "two threads": (2, False, {}),
    "one batch": (1, True, {}),
    # MKL then takes its oldest code path, as on another kind of processor. It reads this once, as a process starts.
    "another order of summation": (1, False, {"MKL_CBWR": "COMPATIBLE"}),
}


def run(options: Mapping[str, str]) -> list[Row]:
    """Count.

    Options: ``model`` (smollm2-135m), ``methods`` (of `WORK`, joined by +; all), ``windows`` (4), ``tokens`` (256).
    The ratio is the share of mask bits that are those of one thread and one window at a time; no row holds a time.
    """
    if wrong := set(options) - {"model", "methods", "windows", "tokens"}:
        raise UserError(f"suite masks has no option {sorted(wrong)[0]!r}; legal: methods, model, tokens, windows")
    names = options.get("methods", "+".join(WORK)).split("+")
    if unknown := [name for name in names if name not in WORK]:
        raise UserError(f"suite masks has no method {unknown[0]!r}; legal: {', '.join(WORK)}")
    model = options.get("model", "smollm2-135m")
    windows, tokens = int(options.get("windows", "4")), int(options.get("tokens", "256"))
    calibration = Calibration(corpus="python-docs", windows=windows, window_tokens=tokens)
    work = {name: WORK[name] for name in names}
    found = {condition: _masks(model, calibration, work, condition) for condition in _CONDITIONS}
    return [
        {
            "suite": "masks",
            "work": f"{name}: {condition}",
            "baseline": _BASELINE,
            **_compared(found[_BASELINE], found[condition], name),
            "params": {**work[name][0], **asdict(calibration), "model": model},
            "cpu": cpu_model(),
        }
        for name in names
        for condition in _CONDITIONS
        if condition != _BASELINE
    ]


def _masks(
    model: str, calibration: Calibration, work: Mapping[str, Any], condition: str
) -> dict[str, np.ndarray[Any, Any]]:
    """Packed masks by way of pruning and layer, from a process of its own."""
    import numpy as np

    threads, batch, environment = _CONDITIONS[condition]
    sys.stderr.write(f"{condition}\n")
    with tempfile.TemporaryDirectory(prefix="sparsehpc-masks-") as folder:
        given, file = Path(folder) / "work.json", Path(folder) / "masks.npz"
        wanted = {"model": model, "file": str(file), "threads": threads, "batch": batch, "work": dict(work)}
        given.write_text(json.dumps({**wanted, "calibration": asdict(calibration)}), encoding="utf-8")
        # A limit of OpenMP's would hold back the process that shall have two threads.
        inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        child = subprocess.run(
            [sys.executable, "-m", "jobs.bench._masks_walk", str(given)], check=False, env={**inherited, **environment}
        )
        if child.returncode:
            raise SparseHPCError(f"masks with {condition}: the process ended with {child.returncode}")
        with np.load(file) as arrays:
            return dict(arrays)


def _compared(
    baseline: Mapping[str, np.ndarray[Any, Any]], other: Mapping[str, np.ndarray[Any, Any]], name: str
) -> dict[str, Any]:
    """Share of equal bits, and the number of different ones in every layer."""
    import numpy as np

    layers = sum(key.startswith(f"{name}/") and key.endswith("/bits") for key in baseline)
    different = [
        int(np.unpackbits(baseline[f"{name}/{layer}"] ^ other[f"{name}/{layer}"]).sum()) for layer in range(layers)
    ]
    total = sum(int(baseline[f"{name}/{layer}/bits"]) for layer in range(layers))
    return {"ratio": 1 - sum(different) / total, "mask_bits": total, "mask_bits_different": different}

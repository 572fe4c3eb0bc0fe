"""Peak memory of pruning a model that is larger than it: a random Llama on disk, one process a method.

Every row runs in a process of its own, so that its peak (VmHWM, mapped pages included) is its own. Beside it stand the
bytes on disk and what the memory formula predicts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.study import SHIPPED
from sparsehpc.core.machine import cpu_model
from sparsehpc.core.spec import DEFAULT_TARGETS
from sparsehpc.models.memory import WalkMemory
from sparsehpc.pruning.base import METHODS as METHODS_BY_NAME

if TYPE_CHECKING:
    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.models.structure import Structure

MIB = 2**20
GIB = 2**30

#: Llama-shaped: layers of 28.3 million weights, 112 of them here, and two tables of 25.2 million: 6.0 GiB in bfloat16.
CONFIG_FILE = SHIPPED / "deep-llama" / "config.json"
LAYERS = 112
METHODS = ("magnitude", "wanda", "sparsegpt")
WINDOWS, WINDOW_TOKENS = 4, 256
#: Memory that hidden states may fill before they go to disk.
BUDGET_BYTES = 256 * MIB

_CHILD = """
import json, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch
from sparsehpc.core.machine import peak_rss_bytes
from sparsehpc.core.spec import Calibration, Cell, Pruning, Windows
from sparsehpc.models.snapshot import Snapshot
from sparsehpc.pipeline import run_cells
from sparsehpc.pruning.base import METHODS
from sparsehpc.text.windows import TokenWindows

folder, method, targets, windows, tokens, budget, threads = *sys.argv[1:4], *map(int, sys.argv[4:8])
torch.set_num_threads(threads)
snapshot = Snapshot.load(Path(folder))
def text(seed):
    ids = np.random.default_rng(seed).integers(0, snapshot.structure.vocab_size, (windows, tokens))
    return TokenWindows(tuple(ids), (3 * tokens,) * windows, False, tuple(range(0, windows * tokens, tokens)), "random")
draw = Calibration(corpus="random", windows=windows, window_tokens=tokens)
evaluation = Windows(corpus="random", windows=windows, window_tokens=tokens)
pruning = Pruning(method=method, pattern="unstructured", sparsity="0.5", targets=tuple(targets.split("+")),
                  calibration=draw if METHODS.get(method).needs_calibration() else None)
cell = Cell(model="random", dtype="bfloat16", evaluation=evaluation, variant="masked", pruning=pruning)
base = peak_rss_bytes()
start = time.perf_counter()
out = []
with tempfile.TemporaryDirectory() as scratch:
    run_cells([cell], snapshot, text(0), {draw: text(1)}, None, scratch=Path(scratch), memory_bytes=budget,
              finished=lambda c, r: out.append(r))
if isinstance(out[0], Exception):
    raise out[0]
wanted = ("model", "unique", "sparsity_prunable")
zeros = [m for m in out[0].measurements if (m.scope, m.convention, m.metric) == wanted]
print(json.dumps({"peak_rss_bytes": peak_rss_bytes(), "interpreter_bytes": base, "seconds": time.perf_counter() - start,
                  "zeros": zeros[0].numerator, "prunable": zeros[0].denominator}))
"""


def run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a method: peak memory against the model's bytes on disk.

    Options: ``layers`` (decoder layers, 112), ``methods`` (joined by commas), ``targets`` (attention+mlp), ``threads``,
    ``folder`` (disk to use).
    """
    from sparsehpc.models.random_weights import write_random_snapshot

    config: dict[str, Any] = json.loads(CONFIG_FILE.read_text(encoding="utf-8"))
    config["num_hidden_layers"] = int(options.get("layers", LAYERS))
    methods = options.get("methods", ",".join(METHODS)).split(",")
    targets = options.get("targets", "+".join(DEFAULT_TARGETS))
    threads = int(options.get("threads", len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory(prefix="sparsehpc-memory-", dir=options.get("folder")) as folder:
        snapshot = write_random_snapshot(config, Path(folder) / "model", 0, "bfloat16")
        size = sum(int(snapshot.files[name]["bytes"]) for name in snapshot.weight_files)
        return [_row(snapshot, method, targets, size, threads) for method in methods]


def predicted_bytes(structure: Structure, method: str, targets: str) -> int:
    """What the memory formula says of one row."""
    pruned = structure.prunable(tuple(targets.split("+")))
    memory = WalkMemory(
        structure=structure,
        dtype="bfloat16",
        pruned=frozenset(p.name for p in pruned),
        statistics=METHODS_BY_NAME.get(method).statistics,
        hidden_tokens=4 * WINDOWS * WINDOW_TOKENS,
        window_tokens=WINDOW_TOKENS,
        workspace_bytes_per_weight=METHODS_BY_NAME.get(method).workspace_bytes_per_weight,
        outside_weights=sum(p.numel for p in pruned if p.layer is None),
        budget_bytes=BUDGET_BYTES,
    )
    return memory.peak_bytes


def _row(snapshot: Snapshot, method: str, targets: str, model_bytes: int, threads: int) -> dict[str, Any]:
    numbers = map(str, (WINDOWS, WINDOW_TOKENS, BUDGET_BYTES, threads))
    arguments = [str(snapshot.path), method, targets, *numbers]
    child = subprocess.run([sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{method} failed:\n{child.stderr[-2000:]}")
    found = json.loads(child.stdout.strip().splitlines()[-1])
    return {
        "suite": "memory",
        "work": f"{method} 50 %, layer by layer",
        "baseline": "bytes of the model on disk",
        "ratio": round(model_bytes / found["peak_rss_bytes"], 3),
        "model_gib": round(model_bytes / GIB, 3),
        "peak_rss_gib": round(found["peak_rss_bytes"] / GIB, 3),
        "predicted_gib": round(predicted_bytes(snapshot.structure, method, targets) / GIB, 3),
        "interpreter_gib": round(found["interpreter_bytes"] / GIB, 3),
        "seconds": round(found["seconds"], 1),
        "params": snapshot.structure.params_total,
        "zeros": int(found["zeros"]),
        "prunable": int(found["prunable"]),
        "targets": targets,
        "dtype": "bfloat16",
        "windows": WINDOWS,
        "window_tokens": WINDOW_TOKENS,
        "threads": threads,
        "cpu": cpu_model(),
    }

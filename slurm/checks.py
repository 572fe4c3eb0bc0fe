"""What ``doctor --profile`` looks at inside a job: whether a node gives what was asked and can compute.

It runs as ``python -m slurm.checks FOLDER`` in one small job and leaves ``checks.json`` there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from sparsehpc.core.machine import file_system

RESULT = "checks.json"
IMPORTS = ("torch", "transformers", "pyarrow", "dask", "safetensors", "submitit", "jobs", "aggregate", "sparsehpc")


def look(folder: Path) -> dict[str, Any]:
    """Everything a node can say about itself.

    Parameters
    ----------
    folder
        Folder on the shared disk that the submitting side made.
    """
    from slurm.node import scratch_folder
    from sparsehpc.core.provenance import machine, software

    found: dict[str, Any] = {"time": time.time(), "affinity": len(os.sched_getaffinity(0)), "imports": {}}
    for name in IMPORTS:
        try:
            importlib.import_module(name)
            found["imports"][name] = ""
        except Exception as error:  # noqa: BLE001 - whatever keeps it from loading is the finding
            found["imports"][name] = f"{type(error).__name__}: {error}"
    found["software"] = software()
    found["machine"] = machine()
    found["gpus"] = _gpus()
    found["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    found["scratch"] = _scratch(scratch_folder())
    found["memory_limit_bytes"] = _memory_limit()
    found["write"] = _write(folder)
    return found


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    uuids = (getattr(torch.cuda.get_device_properties(n), "uuid", "") for n in range(torch.cuda.device_count()))
    return [f"{torch.cuda.get_device_name(n)} (uuid {uuid or 'unknown'})" for n, uuid in enumerate(uuids)]


def _scratch(folder: Path) -> str:
    """Where temporary files go, what that is, and the room there."""
    space = os.statvfs(folder)
    free_gib = space.f_bavail * space.f_frsize / 2**30
    return f"{folder} ({file_system(folder) or 'unknown'}, {free_gib:.0f} GiB free)"


def _memory_limit() -> int | None:
    asked = os.environ.get("SLURM_MEM_PER_NODE", "")
    return int(asked) << 20 if asked.isdigit() else None


def _write(folder: Path) -> str:
    """Write, rename and remove in the folder; empty if that works."""
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        probe.write_text("x")
        probe.rename(probe.with_suffix(".moved"))
        probe.with_suffix(".moved").unlink()
    except OSError as error:
        return str(error)
    free = os.statvfs(folder)
    return "fewer than 1000 free inodes" if free.f_files and free.f_favail < 1000 else ""


def main() -> None:
    """Entry point."""
    folder = Path(sys.argv[1])
    temporary = folder / f".{RESULT}.tmp"
    temporary.write_text(json.dumps(look(folder)))
    temporary.replace(folder / RESULT)


if __name__ == "__main__":
    main()

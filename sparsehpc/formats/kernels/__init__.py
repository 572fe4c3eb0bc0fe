"""Compiled products of stored weights: which instruction sets there are, and which one is used.

The extension `_kernels` is optional. It holds one version per instruction set and picks the best one that the
processor runs; ``SPARSEHPC_ISA`` names another (``torch`` switches the compiled kernels off).
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsehpc.core.errors import UserError, unknown

if TYPE_CHECKING:
    from types import ModuleType

#: Environment variable that forces one instruction set.
ISA_VARIABLE = "SPARSEHPC_ISA"
#: Its value for "no compiled kernels".
TORCH = "torch"
#: Every version there is, best first; which of them a processor runs is another matter.
ALL_ISAS = ("avx512-vbmi2", "avx512", "avx2", "portable")


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, or None where it was not built.

    Torch is imported first, so that both share one OpenMP library and with it one pool of threads.
    """
    importlib.import_module("torch")
    try:
        return importlib.import_module("sparsehpc.formats.kernels._kernels")
    except ModuleNotFoundError:
        return None


@functools.cache
def available() -> tuple[str, ...]:
    """Instruction sets this processor runs, best first; empty without the extension."""
    module = extension()
    return tuple(module.isas()) if module is not None else ()


def isa() -> str | None:
    """The instruction set in use, or None where torch serves.

    Raises
    ------
    UserError
        ``SPARSEHPC_ISA`` names one that does not exist, that this processor lacks, or that was not built.
    """
    return _chosen(os.environ.get(ISA_VARIABLE, ""))


@functools.cache
def _chosen(wanted: str) -> str | None:
    names = available()
    if not wanted:
        return names[0] if names else None
    if wanted == TORCH:
        return None
    if wanted not in ALL_ISAS:
        raise UserError(f"{ISA_VARIABLE}: {unknown('instruction set', wanted, (*ALL_ISAS, TORCH))}")
    if wanted not in names:
        have = ", ".join(names) if names else "none: the extension was not built"
        raise UserError(
            f"{ISA_VARIABLE}={wanted} is not available here (available: {have})",
            f"unset {ISA_VARIABLE} to let the processor decide, or set it to {TORCH}",
        )
    return wanted


def describe() -> dict[str, Any]:
    """What `sparsehpc doctor` shows: built or not, instruction sets, and the OpenMP libraries in the process."""
    return {
        "built": extension() is not None,
        "available": available(),
        "isa": isa(),
        "serves": "torch" if isa() is None else "compiled kernels",
        "openmp_libraries": openmp_libraries(),
    }


def openmp_libraries() -> tuple[str, ...]:
    """Paths of the OpenMP libraries this process has loaded; more than one means two pools on the same cores."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return tuple(sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))))

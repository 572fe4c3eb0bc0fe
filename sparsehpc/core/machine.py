"""What this machine is: processor and resident memory, read from /proc."""

from __future__ import annotations

import ctypes
import functools
import gc
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: Where the kernel describes logical CPUs.
_CPUS = Path("/sys/devices/system/cpu")


@functools.cache
def cpu_model() -> str:
    """Name of the processor, or ``unknown``."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return "unknown"
    return "unknown"


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far (VmHWM, mapped pages included)."""
    return _status("VmHWM")


def resident_bytes() -> int:
    """Resident memory of this process now (VmRSS), after memory that was freed has gone back to the system."""
    gc.collect()
    return_freed_memory()
    return _status("VmRSS")


def return_freed_memory() -> None:
    """Give freed memory back to the system.

    glibc keeps what is freed between blocks that are still used, and how much that is depends on chance: over a
    hundred layers it has come to three times of what the walk held.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; others give memory back by themselves
    if trim is not None:
        trim(0)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def gpu_clocks_mhz(uuid: str) -> dict[str, int]:
    """Clocks of one GPU as nvidia-smi tells them: of its cores now and at most, and of its memory; empty without it."""
    query = {"cores": "clocks.sm", "cores_most": "clocks.max.sm", "memory": "clocks.mem"}
    try:
        return dict(zip(query, map(int, _nvidia_smi(uuid, *query.values())), strict=True))
    except ValueError:
        return {}


def gpu_power_limit_w(uuid: str) -> float | None:
    """Most power that one GPU is allowed to draw, which bounds its clocks; None where nvidia-smi does not say."""
    try:
        [limit] = map(float, _nvidia_smi(uuid, "power.limit"))
    except ValueError:
        return None
    return limit


def _nvidia_smi(uuid: str, *fields: str) -> list[str]:
    """Values of one GPU; empty where there is no nvidia-smi, or none of it."""
    words = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split(",")


def core_of(cpu: int, root: Path = _CPUS) -> str:
    """Name of the core that a logical CPU is one thread of; its own where the kernel does not say."""
    try:
        return (root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return f"cpu{cpu}"


def physical_cores(cpus: Iterable[int], root: Path = _CPUS) -> int:
    """Cores behind logical CPUs: fewer than those where two of them are threads of one core.

    Parameters
    ----------
    cpus
        Numbers of logical CPUs.
    root
        Where the kernel describes them; a CPU that it does not describe counts as a core.
    """
    return len({core_of(cpu, root) for cpu in cpus})


def file_system(path: Path) -> str:
    """Type of the file system that holds a path (``ext4``, ``nfs4``, ``lustre``, ...); empty where it is not known."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, found = path.resolve(), (-1, "")
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount.split()[4]))
        if place.is_relative_to(point) and len(point.parts) >= found[0]:  # of two at one place the later lies on top
            found = (len(point.parts), source.split()[0])
    return found[1]

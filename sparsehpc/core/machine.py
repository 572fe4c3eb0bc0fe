"""What this machine is: processor and resident memory, read from /proc."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path


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
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def gpu_clocks_mhz(uuid: str) -> dict[str, int]:
    """Clocks of one GPU as nvidia-smi tells them: of its cores now and at most, and of its memory; empty without it."""
    query = {"cores": "clocks.sm", "cores_most": "clocks.max.sm", "memory": "clocks.mem"}
    words = [
        "nvidia-smi",
        f"--id=GPU-{uuid}",
        f"--query-gpu={','.join(query.values())}",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
        return dict(zip(query, map(int, answer.stdout.split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}

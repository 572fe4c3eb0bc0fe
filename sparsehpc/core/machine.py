"""What this machine is: processor and resident memory, read from /proc."""

from __future__ import annotations

import functools
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

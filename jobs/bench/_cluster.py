"""Where benchmarks of a cluster run: one that is there, or a private one for the time of the benchmark."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def cluster(name: str, tasks: int) -> Iterator[Any]:
    """Yield the profile of the cluster to use: the one named, or the testbed's on a private cluster."""
    from slurm.profile_file import load_profile
    from slurm.testbed import Testbed
    from slurm.testbed.config import Options

    if name:
        yield load_profile(name)
        return
    with tempfile.TemporaryDirectory(prefix="shpc-", dir="/tmp") as place:
        Path(place).chmod(0o711)
        bed = Testbed(Path(place) / "bed")
        bed.up(Options(max_array_size=min(501, tasks + 1), max_submit=tasks + 200))
        before = dict(os.environ)
        os.environ.update(bed.environment())
        try:
            yield load_profile("testbed")
        finally:
            os.environ.clear()
            os.environ.update(before)
            bed.down()


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """Yield the folder that was named, or one that goes afterwards."""
    if name:
        yield Path(name).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="sparsehpc-bench-") as place:
        yield Path(place)

"""On a node: temporary files and compiler caches that never touch a network file system."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

#: Where node-local space may be, in order: what a user says, what the scheduler made for the job, common site
#: variables, the system's.
SCRATCH_VARIABLES = ("SPARSEHPC_SCRATCH", "SLURM_TMPDIR", "LOCAL_SCRATCH", "LOCALSCRATCH", "TMP_LOCAL", "TMPDIR")
#: Compiler caches that race on NFS and eat inodes.
CACHE_VARIABLES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH")
_LOCK = ".lock"


def scratch_folders(environment: Mapping[str, str] | None = None) -> list[tuple[str, Path]]:
    """Fallback chain: what names a folder that exists and can be written to, and the folder; the system's at last."""
    values = os.environ if environment is None else environment
    named = [(variable, Path(values[variable])) for variable in SCRATCH_VARIABLES if values.get(variable)]
    usable = [(name, path) for name, path in named if path.is_dir() and os.access(path, os.W_OK | os.X_OK)]
    # Inside a job TMPDIR is the job's own folder: what tasks of a node share lies beside it.
    return [
        (name, path.parent if path.name.startswith(_own_prefix()) else path)
        for name, path in (*usable, ("the system's folder", Path(tempfile.gettempdir())))
    ]


def scratch_folder(environment: Mapping[str, str] | None = None) -> Path:
    """First folder of the fallback chain that exists and can be written to; the system's default at last."""
    return scratch_folders(environment)[0][1]


@contextmanager
def node_local_folders() -> Iterator[Path]:
    """Give this process a private folder on the node and point TMPDIR and the compiler caches into it.

    The folder goes when the block ends. Folders that killed processes of this user left on the node are swept first.
    """
    base = scratch_folder()
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=_own_prefix(), dir=base))
    lock = (folder / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    changes = {"TMPDIR": str(folder), **{name: str(folder / name.lower()) for name in CACHE_VARIABLES}}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    tempfile.tempdir = None
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        tempfile.tempdir = None
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def _own_prefix() -> str:
    return f"sparsehpc-{os.getuid()}-"


def _sweep(base: Path) -> None:
    """Remove folders of this user whose owner no longer holds its lock (ids of processes differ in containers)."""
    for path in base.glob(f"{_own_prefix()}*"):
        with suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            with (path / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)

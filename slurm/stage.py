"""On a node: weights copied once to node-local space, for all of a user's tasks that are there at the same time.

A copy lies under its digest in a folder that nobody but its owner can enter::

    SCRATCH/sparsehpc-weights-UID/<name>.lock      held by every task that reads the copy (shared), or makes it
    SCRATCH/sparsehpc-weights-UID/<name>/          the copy, whole: made beside its place and renamed

Who finds the lock free copies anew, whatever lies there: it was left by a process that was killed, perhaps with the
node. The last task to leave removes the copy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from slurm.node import scratch_folders
from sparsehpc.core.errors import UserError
from sparsehpc.core.machine import file_system

#: Set by a job script whose profile says ``stage_weights``; any value but ``0`` asks for copies.
STAGE = "SPARSEHPC_STAGE"
#: Left free for temporary files and hidden states.
LEAVE_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 22
_TRIES = 100
#: Memory would count as the job's own; what lies on a network file system is no nearer than the original.
_USELESS = re.compile(r"tmpfs|ramfs|nfs|cifs|smb|9p|afs|fuse|lustre|gpfs|beegfs|ceph|pvfs|orangefs|panfs|wekafs")
#: Whoever sets this one knows what lies behind it.
_TRUSTED = "SPARSEHPC_SCRATCH"


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """Where weights are read.

    Parameters
    ----------
    folder
        The copy, or the original.
    where
        In words without a path, for logs and provenance.
    """

    folder: Path
    where: str


class Stage:
    """Node-local copies of one job; leaving the block gives them up.

    Parameters
    ----------
    environment
        Where scratch folders are looked up; default: ``os.environ``.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment
        self._held: dict[str, Placed] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        self._stack.close()

    @property
    def wanted(self) -> bool:
        """Whether this job was told to copy weights."""
        values = os.environ if self._environment is None else self._environment
        return values.get(STAGE, "0") not in ("", "0")

    def place(self, source: Path, digest: str, files: Mapping[str, Mapping[str, Any]]) -> Placed:
        """Copy a folder to the first node-local folder with room for it, or say why it is read where it is.

        Parameters
        ----------
        source
            Folder on the shared disk.
        digest
            Names the content.
        files
            File name to ``{"bytes": ..., "sha256": ...}``; everything that is copied.

        Raises
        ------
        UserError
            A file is not what its checksum says, or its name would leave the folder.
        """
        # The digest comes from a run folder, perhaps from someone else's: hashed, it is a name and nothing more.
        key = hashlib.sha256(digest.encode()).hexdigest()[:32]
        if key not in self._held:
            self._held[key] = self._place(source, key, files)
        return self._held[key]

    def _place(self, source: Path, key: str, files: Mapping[str, Mapping[str, Any]]) -> Placed:
        if unsafe := [name for name in files if Path(name).name != name or name in ("", ".", "..")]:
            raise UserError(f"the manifest of {source} names {unsafe[0]!r}, which is no file beside it")
        reasons = []
        tried = set[Path]()
        for variable, base in scratch_folders(self._environment):
            if base in tried:
                continue
            tried.add(base)
            try:
                folder, made = self._copy_in(base, variable == _TRUSTED, source, key, files)
            except _Unusable as reason:
                reasons.append(f"{variable}: {reason}")
            except OSError as error:
                reasons.append(f"{variable}: {error.strerror or type(error).__name__}")
            else:
                return Placed(
                    folder,
                    f"node-local copy ({variable}), {'made by this task' if made else 'shared with other tasks'}",
                )
        return Placed(source, f"in place; {'; '.join(reasons)}")

    def _copy_in(
        self, base: Path, trusted: bool, source: Path, key: str, files: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Path, bool]:
        """The copy in one scratch folder, and whether it was made now."""
        if not trusted and _USELESS.search(kind := file_system(base)):
            raise _Unusable(f"a file system of type {kind}")
        place = base / f"sparsehpc-weights-{os.getuid()}"
        folder, lock_path = place / key, place / f"{key}.lock"
        for _ in range(_TRIES):
            try:
                _own_folder(place)
                _sweep(place, key)
                lock = lock_path.open("ab")
            except FileNotFoundError:
                continue  # the last one to leave has just removed the folder
            with contextlib.ExitStack() as undo:
                undo.callback(_leave, lock, lock_path, folder)
                if first := _locked(lock, fcntl.LOCK_EX):
                    if _is_at(lock, lock_path):
                        _copy(source, folder, files)
                        # Between the two locks somebody else may come first: then the copy is made again.
                        fcntl.flock(lock, fcntl.LOCK_SH)
                else:
                    fcntl.flock(lock, fcntl.LOCK_SH)  # waits for one that copies
                if _is_at(lock, lock_path) and folder.is_dir():
                    self._stack.push(undo.pop_all())
                    return folder, first
        raise _Unusable("others remove it again and again")


class _Unusable(Exception):
    """A scratch folder that does not serve, in words."""


def _own_folder(place: Path) -> None:
    """Make the folder of copies; in a place where everybody may write, one of that name may be someone else's."""
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise _Unusable("the folder for copies is another user's, or open to others")


def _copy(source: Path, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy and check every file beside its place, then rename; what was there before is left from a killed process."""
    part = folder.with_suffix(".part")
    for leftover in (folder, part):
        shutil.rmtree(leftover, ignore_errors=True)
    needed = sum(int(entry["bytes"]) for entry in files.values())
    space = os.statvfs(folder.parent)
    free = space.f_bavail * space.f_frsize
    if free < needed + LEAVE_BYTES:
        raise _Unusable(
            f"{free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB and {LEAVE_BYTES / 2**30:.0f} to spare are needed"
        )
    try:
        part.mkdir(mode=0o700)
        for name, entry in files.items():
            _copy_file(source / name, part / name, entry)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy_file(origin: Path, place: Path, entry: Mapping[str, Any]) -> None:
    """Copy by sequential reads; `UserError` where bytes or checksum are not those of the manifest."""
    digest, size = hashlib.sha256(), 0
    with origin.open("rb") as reader, place.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
    if (size, digest.hexdigest()) != (entry["bytes"], entry["sha256"]):
        raise UserError(
            f"{origin} is damaged or was changed: {size} bytes, sha256 {digest.hexdigest()[:12]}; "
            f"expected {entry['bytes']}, {entry['sha256'][:12]}",
            "prepare the model again",
        )


def _locked(lock: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(lock: IO[bytes], path: Path) -> bool:
    """Whether an open lock is still the file of that name: the last one to leave removes it."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _leave(lock: IO[bytes], lock_path: Path, folder: Path) -> None:
    """Give up a copy, and remove it where nobody else has it."""
    with lock:
        if _locked(lock, fcntl.LOCK_EX) and _is_at(lock, lock_path):
            for leftover in (folder, folder.with_suffix(".part")):
                shutil.rmtree(leftover, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other copies lie there
                folder.parent.rmdir()


def _sweep(place: Path, key: str) -> None:
    """Remove other copies that nobody holds: their tasks were killed."""
    for lock_path in place.glob("*.lock"):
        if lock_path.stem != key:
            with contextlib.suppress(OSError):
                _leave(lock_path.open("r+b"), lock_path, lock_path.with_suffix(""))

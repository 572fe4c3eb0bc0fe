"""Files in a shared run folder that decide what runs: only their owner may change them, and only his own are used.

A run folder may be writable for a whole group. The folder of a submission is not, and what is run out of it (script,
payload) is opened once and checked on the open file, so that nothing can be put in its place in between.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from sparsehpc.core.errors import SparseHPCError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def make_folder(folder: Path) -> None:
    """Make a folder that others may read as far as the umask allows, and not write, whatever it says."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o755)


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a new file that only its owner can change; ``mode`` is limited by the umask."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & ~_OTHERS), "wb") as file:
        file.write(data)


def open_file(path: Path) -> BinaryIO:
    """Open a file that will be run.

    Raises
    ------
    SparseHPCError
        If it is a link, belongs to another user or could have been changed by one.
    """
    what = f"{path.name} in {path.parent}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise SparseHPCError(f"{what} cannot be read: {error}; submit again") from error
    file = os.fdopen(descriptor, "rb")
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, not to you"
    elif found.st_mode & _OTHERS:
        problem = f"can be written by others (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return file
    file.close()
    raise SparseHPCError(f"{what} {problem}: it is not run; submit again")

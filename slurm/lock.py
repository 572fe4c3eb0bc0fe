"""One process at a time submits cells of a run; the lock of a process that is gone is taken over."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder

_LOCK = ".submit.lock"


@contextlib.contextmanager
def submitting(run: RunFolder) -> Iterator[None]:
    """Hold the run's lock; `UserError` where another process does.

    File locks of the kernel are void on some network file systems, so that the lock is a file that only one can make.
    """
    path = run.submissions / _LOCK
    mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex})
    try:
        run.submissions.mkdir(parents=True, exist_ok=True)
        made = _make(path, mine)
    except OSError as error:
        raise UserError(
            f"{run.submissions} cannot be written: {error.strerror}", "cells are submitted from a folder that can be"
        ) from error
    if not made:
        holder = _holder(path)
        if holder is None:
            path.unlink(missing_ok=True)
        if holder is not None or not _make(path, mine):
            raise UserError(
                f"another process submits cells of {run.root}: {holder or 'it has just come'}",
                f"wait for it; if it is gone, remove {path}",
            )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text() == mine:
                path.unlink()


def _make(path: Path, text: str) -> bool:
    # Linked into place whole: a lock is never seen without its holder's name.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _holder(path: Path) -> str | None:
    """Who holds the lock, in words; None where it is a process of this host that no longer runs."""
    try:
        holder = json.loads(path.read_text())
        host, pid = str(holder["host"]), int(holder["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its lock cannot be read"
    if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
        return None
    return f"process {pid} on {host}"

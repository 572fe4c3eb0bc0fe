"""Prepare a model: make its snapshot once, whole or not at all, whatever kind of source it has."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsehpc.core.errors import UserError
from sparsehpc.core.files import flush_folder, write_text
from sparsehpc.models import folder as folder_source
from sparsehpc.models import gguf_source, hub, random_weights
from sparsehpc.models.home import home, safe_name
from sparsehpc.models.snapshot import MANIFEST, Snapshot, snapshot_folder
from sparsehpc.models.target import Target, resolve

Progress = Callable[[str], object]
Build = Callable[[Target, Path, Progress], Snapshot]

_ABANDONED_S = 24 * 3600

_BUILDERS: dict[str, Build] = {
    "hub": hub.build,
    "package": gguf_source.build,
    "gguf": gguf_source.build,
    "folder": folder_source.build,
    "random": random_weights.build,
}


def prepare(model: str, revision: str | None = None, progress: Progress | None = None) -> Snapshot:
    """Make sure that a model is prepared, and open it.

    A snapshot that is there and whole (checksums are compared) is opened; nothing is fetched again. A damaged one, or
    one whose local source has changed, is made again. Two processes that prepare the same model end with one whole
    snapshot.

    Parameters
    ----------
    model, revision
        As in a study file; see `sparsehpc.models.target.resolve`.
    progress
        Called with a line of text now and then.

    Raises
    ------
    UserError
        The source is missing, unsupported or cannot be reached, or there is no room.
    """
    report: Progress = progress or (lambda text: None)
    target = resolve(model, revision)
    if (found := _intact(target)) is not None:
        report(f"{target.model} is prepared in {found.path}")
        return found
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
        _sweep(target.folder)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=target.folder))
    except OSError as error:
        raise UserError(f"{home()} cannot be written: {error}", "set SPARSEHPC_HOME to a folder that can") from error
    try:
        # mkdtemp makes a private folder; a shared home must be readable by the group as the umask says.
        made = staging / "snapshot"
        made.mkdir()
        built = _BUILDERS[target.kind](target, made, report)
        name = safe_name(built.revision or built.digest[:16])
        final = _install(built, target.folder / name)
        write_text(target.reference, name + "\n")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no room left under {home()}", "set SPARSEHPC_HOME to a larger file system") from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    report(f"{target.model} is prepared in {final.path}")
    return final


def offline_preparable(model: str) -> bool:
    """Whether `prepare` needs no internet."""
    return resolve(model).kind != "hub"


def _intact(target: Target) -> Snapshot | None:
    """Return the prepared snapshot if every checksum holds and the local source is as it was."""
    folder = snapshot_folder(target)
    if folder is None:
        return None
    try:
        snapshot = Snapshot.load(folder)
        snapshot.verify()
    except UserError:
        if folder == target.path:
            raise
        return None
    if folder != target.path and _source_changed(target, snapshot.source):
        return None
    return snapshot


def _source_changed(target: Target, source: Any) -> bool:
    if target.kind in ("package", "gguf"):
        now = gguf_source.fingerprint(gguf_source.source_path(target))
        # Installing a package again changes its files' times, not their content.
        keys = ("bytes",) if target.kind == "package" else ("bytes", "mtime_ns")
        return any(source.get(key) != now[key] for key in keys)
    if target.kind == "folder" and target.path is not None:
        return bool(source.get("files") != folder_source.fingerprint(target.path))
    if target.kind == "random":
        return bool(source.get("config_sha256") != random_weights.config_digest(target))
    return False


def _install(built: Snapshot, final: Path) -> Snapshot:
    """Move a finished snapshot to its place; one that another process put there meanwhile stays."""
    for _ in range(3):
        try:
            built.path.rename(final)
            flush_folder(final.parent)
            return Snapshot.load(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            present = Snapshot.load(final)
            present.verify()
            if present.digest == built.digest:
                # The same content, perhaps from a source that was touched: the manifest remembers the newer one.
                (built.path / MANIFEST).replace(final / MANIFEST)
                return Snapshot.load(final)
            return present
        except UserError:
            _discard(final)
    raise UserError(f"{final} is being replaced by another process again and again", "try again later")


def _sweep(folder: Path) -> None:
    """Remove what preparations that were killed left behind; a living one is not a day old."""
    for left in (*folder.glob(".new-*"), *folder.glob(".old-*")):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left)


def _discard(folder: Path) -> None:
    aside = folder.with_name(f".old-{uuid.uuid4().hex[:8]}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)

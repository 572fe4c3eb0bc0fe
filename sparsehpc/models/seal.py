"""Finish a snapshot: checksum its files and write the manifest, the mark that it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsehpc.core.errors import UserError
from sparsehpc.core.files import sha256_file, write_text
from sparsehpc.models.snapshot import MANIFEST, MANIFEST_VERSION, Snapshot


def seal(
    folder: Path,
    *,
    model: str,
    revision: str | None,
    trained: bool,
    published_dtype: str,
    source_bytes: int,
    source: Mapping[str, Any],
) -> Snapshot:
    """Checksum every file of a folder and write its manifest: from then on it is a snapshot.

    Raises
    ------
    UserError
        The weights do not fit the config, or the tokenizer is missing.
    """
    files = {file.name: _entry(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != MANIFEST}
    if "tokenizer.json" not in files:
        raise UserError(f"{model} has no tokenizer.json, and none could be made", "add one beside its config.json")
    digest = hashlib.sha256(json.dumps({name: f["sha256"] for name, f in files.items()}, sort_keys=True).encode())
    manifest = {
        "version": MANIFEST_VERSION,
        "model": model,
        "revision": revision,
        "trained": trained,
        "published_dtype": published_dtype,
        "source_bytes": source_bytes,
        "digest": digest.hexdigest(),
        "source": dict(source),
        "files": files,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    snapshot = Snapshot.load(folder)
    snapshot.headers()
    return snapshot


def _entry(file: Path) -> dict[str, Any]:
    """Bytes and checksum of a file, flushed to disk; of a link, also when its target was last changed."""
    entry: dict[str, Any] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    if file.is_symlink():
        return entry | {"mtime_ns": file.stat().st_mtime_ns}
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    return entry

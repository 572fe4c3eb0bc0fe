"""Where prepared models lie under `home`, and names that never leave it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sparsehpc.core.errors import UserError
from sparsehpc.core.home import home

__all__ = ["home", "model_folder", "path_name", "safe_name"]

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def safe_name(text: str) -> str:
    """One component of a path for any text: ``facebook/opt-125m`` becomes ``facebook--opt-125m``.

    >>> safe_name("../etc/passwd"), safe_name("a b")
    ('etc--passwd', 'a-b')
    """
    parts = [_UNSAFE.sub("-", part).strip(".") for part in text.split("/")]
    return "--".join(part for part in parts if part)[:120] or "-"


def path_name(path: Path) -> str:
    """Safe name of a file or folder anywhere on the machine: its own name and a digest of the full path."""
    return f"{safe_name(path.name)}-{hashlib.sha256(str(path).encode()).hexdigest()[:10]}"


def model_folder(name: str) -> Path:
    """Folder of all revisions of one model under `home`.

    Raises
    ------
    UserError
        A symbolic link leads the folder out of `home`.
    """
    root = home() / "models"
    folder = root / safe_name(name)
    if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{folder} is a symbolic link that leaves {root}", "remove the link, or set SPARSEHPC_HOME")
    return folder

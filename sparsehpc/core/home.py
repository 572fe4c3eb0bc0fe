"""Where prepared models and corpora lie: ``SPARSEHPC_HOME``, by default in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Folder of prepared models (``models/``) and corpora (``corpora/``).

    ``SPARSEHPC_HOME`` names it; otherwise it is ``sparsehpc`` in ``XDG_CACHE_HOME`` or ``~/.cache``. It is not
    created here: a shared folder that can only be read serves every user of a cluster.
    """
    named = os.environ.get("SPARSEHPC_HOME", "")
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache).expanduser().absolute() if cache else Path.home() / ".cache") / "sparsehpc"

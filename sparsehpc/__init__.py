"""The science of sparsehpc: a model in, Arrow rows out, on one machine. Importing it imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsehpc.pretrained import from_pretrained as from_pretrained
    from sparsehpc.pretrained import save_pretrained as save_pretrained

__version__ = "0.1.0"

_LAZY = {"from_pretrained": "sparsehpc.pretrained", "save_pretrained": "sparsehpc.pretrained"}


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'sparsehpc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])

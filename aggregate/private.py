"""Keep persons, accounts and places out of a page that is passed on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

#: Entries of provenance that name a person, an account or a machine.
_PRIVATE = re.compile(r"user|account|host|home|cwd|path|mail|login|folder|director", re.IGNORECASE)

#: A home folder in any text: Linux, macOS, Windows, and the scratch folders that clusters name after people.
_HOME = re.compile(
    r"(?:/(?:home|Users|scratch|work|data|lustre|gpfs|project|projects|users|u)/[^/\s\"':,;)]+|/root\b|[A-Za-z]:\\Users\\[^\\\s\"']+)"
)


def scrub(text: str) -> str:
    """Replace home and personal folders by ``~``.

    >>> scrub("/home/ada/models/opt: not found")
    '~/models/opt: not found'
    """
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home, "~")
    return _HOME.sub("~", text)


def public(provenance: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten provenance to ``a.b -> text`` without private entries."""
    flat: dict[str, str] = {}
    for key, value in provenance.items():
        if _PRIVATE.search(key):
            continue
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= public(value, f"{name}.")
        elif isinstance(value, list):
            flat[name] = ", ".join(scrub(str(item)) for item in value)
        elif value is not None and value != "":
            flat[name] = scrub(str(value))
    return flat

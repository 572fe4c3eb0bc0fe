"""Keep persons, accounts and places out of a page that is passed on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa

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


def scrub_table(table: pa.Table) -> pa.Table:
    """Scrub every column of text; the very same table where nothing in it names a home folder."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            values = table.column(place).to_pylist()
            clean = [None if value is None else scrub(value) for value in values]
            if clean != values:
                table = table.set_column(place, field, pa.array(clean, field.type))
    return table


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

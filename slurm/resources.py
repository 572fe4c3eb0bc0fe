"""What one job asks for: a study's ``[resources.NAME]`` table."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from sparsehpc.core.errors import UserErrors, unknown

#: Upper bounds that only catch slips of the unit (bytes for GiB, seconds for minutes).
LIMITS = {"cpus": 4096, "memory_gib": 65536, "minutes": 60 * 24 * 365, "gpus": 64}
FLAGS = ("checkpoint_layers", "exclusive")
_KEYS = (*LIMITS, *FLAGS)
_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """One resource class.

    Parameters
    ----------
    name
        Name of the class: ``NAME`` of ``[resources.NAME]``; a profile chooses the partition by it.
    cpus
        CPU cores of one job.
    memory_gib
        Memory of one job in GiB.
    minutes
        Wall time of one job in minutes.
    gpus
        GPUs of one job; more than none means that cells run on ``cuda``.
    checkpoint_layers
        Keep the state after every decoder layer in the run folder, so that a killed job goes on there.
    exclusive
        Have the whole node, whatever ``cpus`` says; jobs that time decoding always do.
    """

    name: str = "cpu"
    cpus: int = 1
    memory_gib: float = 4.0
    minutes: int = 30
    gpus: int = 0
    checkpoint_layers: bool = False
    exclusive: bool = False

    @property
    def device(self) -> str:
        """``cuda`` or ``cpu``: follows from what is asked for, never from the machine."""
        return "cuda" if self.gpus else "cpu"

    @property
    def memory_mib(self) -> int:
        """Memory in whole MiB, rounded up."""
        return math.ceil(self.memory_gib * 1024)

    @classmethod
    def from_table(cls, name: str, table: Mapping[str, Any]) -> Resources:
        """Check a table and build the class; `UserErrors` with every problem otherwise."""
        found = problems(name, table)
        if found:
            raise UserErrors(f"resources.{name}", found)
        return cls(name=name, **table)


def problems(name: str, table: object) -> list[str]:
    """Everything that is wrong with ``[resources.NAME]``, each with the legal values; empty if it is sound.

    >>> problems("cpu", {"cpus": 0, "memory": 8})  # doctest: +NORMALIZE_WHITESPACE, +ELLIPSIS
    ["resources.cpu: unknown key 'memory'; did you mean 'memory_gib'? ...",
     'resources.cpu.cpus is 0; legal: a whole number from 1 to 4096']
    """
    where = f"resources.{name}"
    if not _CLASS_NAME.fullmatch(name):
        return [f"{where!r} is not a legal name: letters, digits, '-' and '_', at most 32"]
    if not isinstance(table, Mapping):
        return [f"{where} is {table!r}; legal: a table of {', '.join(_KEYS)}"]
    found = [f"{where}: {unknown('key', key, _KEYS)}" for key in table if key not in _KEYS]
    for key, most in LIMITS.items():
        if key not in table:
            continue
        value, least = table[key], 0 if key == "gpus" else 1
        if key == "memory_gib":
            sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
            legal = f"a number above 0, up to {most}"
        else:
            sound = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
            legal = f"a whole number from {least} to {most}"
        if not sound:
            found.append(f"{where}.{key} is {value!r}; legal: {legal}")
    found += [
        f"{where}.{key} is {table[key]!r}; legal: true or false"
        for key in FLAGS
        if not isinstance(table.get(key, False), bool)
    ]
    return found

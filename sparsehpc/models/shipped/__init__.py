"""Models that are known by name: a table and the config.json of each."""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
from importlib.resources import files
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One known model.

    Parameters
    ----------
    name
        Short name, for example ``opt-125m``.
    id
        What a study writes: the hub id, or the short name where a package holds the weights.
    dtype
        Type of the published weights.
    licence, summary
        For lists.
    revision
        Commit or branch on the hub; empty for a model from a package.
    package
        Requirement of the Python package that holds the weights, or empty.
    """

    name: str
    id: str
    dtype: str
    licence: str
    summary: str
    revision: str = ""
    package: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """Content of its config.json."""
        text = (files(__name__) / "configs" / f"{self.name}.json").read_text(encoding="utf-8")
        config: dict[str, Any] = json.loads(text)
        return config


@functools.cache
def shipped_models() -> dict[str, Shipped]:
    """Every known model by short name."""
    table = tomllib.loads((files(__name__) / "models.toml").read_text(encoding="utf-8"))
    return {name: Shipped(name=name, **entry) for name, entry in table.items()}


def find_shipped(name: str) -> Shipped | None:
    """Look a model up by short name or id."""
    for model in shipped_models().values():
        if name in (model.name, model.id):
            return model
    return None

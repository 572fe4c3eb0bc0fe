"""Fixtures that several rooms share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Make an untrained snapshot of a tiny config, once per config and session."""
    from sparsehpc.models.random_weights import write_random_snapshot

    made: dict[str, Any] = {}

    def make(config: dict[str, Any], seed: int = 0) -> Any:
        key = f"{sorted(config.items())}{seed}"
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny") / str(config["model_type"])
            made[key] = write_random_snapshot(config, folder, seed)
        return made[key]

    return make

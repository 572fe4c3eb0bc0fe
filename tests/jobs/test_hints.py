"""Every command that a message tells people to run is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from jobs.cli import _add_verbs, app

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for package in ("sparsehpc", "jobs", "slurm", "aggregate") for path in (ROOT / package).rglob("*.py")
)

#: A schema's title and the mark in logs: words after our name that are no command.
NO_COMMANDS = {"study", "task"}


@pytest.fixture(scope="module")
def verbs() -> dict[str, set[str]]:
    _add_verbs()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: set(getattr(command, "commands", ())) for name, command in commands.items()}


def test_commands_in_messages_exist(verbs: dict[str, set[str]]) -> None:
    wrong, seen = [], set()
    for path in SOURCES:
        # At the start of a string or of code in a docstring: elsewhere it is prose about the project.
        for verb, word in re.findall(r"[\"'`]sparsehpc ([a-z]+)\b(?: ([a-z]+)\b)?", path.read_text(encoding="utf-8")):
            seen.add(verb)
            if verb not in verbs.keys() | NO_COMMANDS or (word and verbs.get(verb) and word not in verbs[verb]):
                wrong.append(f"{path.relative_to(ROOT)}: sparsehpc {verb} {word}".strip())
    assert wrong == []
    assert {"status", "retry", "submit", "prepare", "testbed"} <= seen

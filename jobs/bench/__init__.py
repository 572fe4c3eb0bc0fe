"""Benchmarks: one file a suite, found by its name.

A suite is a module with a docstring and ``run(options: Mapping[str, str]) -> list[Row]``; a row is a dict with at
least ``suite``, ``work``, ``baseline`` and ``ratio`` (baseline time / ours: above 1 ours is faster). Both sides of a
ratio are measured in the same call on the same machine.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsehpc.core.errors import SparseHPCError, UserError, unknown
from sparsehpc.core.files import write_text
from sparsehpc.core.provenance import machine, software

Row = dict[str, Any]
REQUIRED = ("suite", "work", "baseline", "ratio")


def suites() -> dict[str, str]:
    """Name and first line of every suite."""
    found = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        if not info.name.startswith("_"):
            text = importlib.import_module(f"{__name__}.{info.name}").__doc__ or ""
            found[info.name.replace("_", "-")] = text.strip().splitlines()[0] if text.strip() else ""
    return found


def run_suite(name: str, options: Mapping[str, str]) -> list[Row]:
    """Run one suite and check its rows."""
    module_name = name.replace("-", "_")
    if name.startswith("_") or module_name not in {info.name for info in pkgutil.iter_modules(__path__)}:
        raise UserError(unknown("benchmark suite", name, suites()))
    rows: list[Row] = importlib.import_module(f"{__name__}.{module_name}").run(options)
    for row in rows:
        if missing := [key for key in REQUIRED if key not in row]:
            raise SparseHPCError(f"a row of suite {name!r} lacks {', '.join(missing)}: {row}")
    return rows


def results(name: str, rows: list[Row]) -> dict[str, Any]:
    """Rows with the machine and the versions they were measured with."""
    value = {"suite": name, "finished_at_unix_s": int(time.time()), "software": software(), "machine": machine()}
    return {**value, "rows": rows}


def read_results(path: Path) -> dict[str, Any]:
    """What `write_results` wrote."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not {"suite", "rows", "finished_at_unix_s"} <= set(value):
        raise UserError(f"{path} holds no results of a benchmark", "sparsehpc bench SUITE --json FILE writes them")
    return value


def write_results(path: Path, name: str, rows: list[Row]) -> None:
    """Write `results`."""
    try:
        write_text(path, json.dumps(results(name, rows), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error

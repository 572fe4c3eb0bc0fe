"""Cells that a run holds beyond its study: added to its plan one time after another, and written down.

``extensions.json`` says who added which cells and why, with their full specifications; it is written first, then the
plan. Whoever is stopped in between leaves a plan that the next to open the run completes. The study's own cells stay
what they are, so that ``run`` and ``submit`` of the study finish added cells as well.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.plan import Plan
from jobs.plan_file import planned_ids, read_plan, write_plan
from slurm.lock import submitting
from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_text
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell

_VERSION = 1


def extend_plan(run: RunFolder, cells: Sequence[Cell], why: Mapping[str, Any]) -> list[Cell]:
    """Add cells to the plan of a run; those that it holds already are passed over.

    Parameters
    ----------
    run
        An existing run.
    cells
        What to add, in order.
    why
        Who asked for it and how, for the record.

    Returns
    -------
    list
        The cells that are new.
    """
    with submitting(run):
        complete_plan(run)
        known = set(planned_ids(run.plan))
        added = [cell for cell in {cell.cell_id: cell for cell in cells}.values() if cell.cell_id not in known]
        if added:
            entry = {
                "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                **why,
                "cells": [cell.to_json() for cell in added],
            }
            content = {"version": _VERSION, "extensions": [*_entries(run), entry]}
            write_text(run.extensions, json.dumps(content, indent=1) + "\n")
            complete_plan(run)
    return added


def extra_cells(run: RunFolder) -> list[Cell]:
    """Cells that were added to a run, in order."""
    try:
        cells = [Cell.from_json(text) for entry in _entries(run) for text in entry["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(run, error) from error
    return list({cell.cell_id: cell for cell in cells}.values())


def complete_plan(run: RunFolder) -> None:
    """Write cells into the plan that were recorded as added and did not get there."""
    extra = extra_cells(run)
    if extra and run.plan.is_file():
        known = set(planned_ids(run.plan))
        missing = [cell for cell in extra if cell.cell_id not in known]
        if missing:
            write_plan(run.plan, [*read_plan(run.plan), *missing])


def with_extensions(plan: Plan, run: RunFolder) -> Plan:
    """The plan of a study together with what was added to its run."""
    extra = extra_cells(run)
    if not extra:
        return plan
    complete_plan(run)
    own = {cell.cell_id for cell in plan.cells}
    return dataclasses.replace(plan, cells=(*plan.cells, *(cell for cell in extra if cell.cell_id not in own)))


def _entries(run: RunFolder) -> list[dict[str, Any]]:
    try:
        content = json.loads(run.extensions.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError("another version")
        entries: list[dict[str, Any]] = list(content["extensions"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(run, error) from error
    return entries


def _unreadable(run: RunFolder, error: Exception) -> UserError:
    return UserError(
        f"{run.extensions} is damaged: {error}",
        "go on with the version that wrote it, or put it back from a copy; without it the added cells are not known",
    )

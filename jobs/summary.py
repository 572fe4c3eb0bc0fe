"""A plan in rows, for the command line."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from jobs.plan import Plan


def class_rows(plan: Plan) -> list[tuple[object, ...]]:
    """One row per resource class and model: what a job asks for, and how many cells there are."""
    counts = Counter((cell.resource, cell.model, cell.dtype) for cell in plan.cells)
    rows: list[tuple[object, ...]] = []
    for (name, model, dtype), cells in counts.items():
        resource = plan.study.resources[name]
        asked = (resource.cpus, f"{resource.memory_gib:g}", resource.gpus, resource.minutes)
        rows.append((name, resource.device, model, dtype, cells, *asked))
    return rows


def dropped_rows(plan: Plan) -> list[tuple[object, ...]]:
    """One row per reason."""
    return [(d.model, d.method, d.pattern, d.variant or "all", d.cells, d.reason) for d in plan.dropped]


def plan_summary(plan: Plan) -> dict[str, Any]:
    """The same for programs."""
    counts = Counter((cell.resource, cell.model, cell.revision, cell.dtype, cell.device) for cell in plan.cells)
    return {
        "study": plan.study.name,
        "cells_total": len(plan.cells),
        "classes": [
            {"resource": resource, "model": model, "revision": revision, "dtype": dtype, "device": device, "cells": n}
            for (resource, model, revision, dtype, device), n in counts.items()
        ],
        "resources": {name: dataclasses.asdict(resource) for name, resource in plan.study.resources.items()},
        "dropped": [dataclasses.asdict(entry) for entry in plan.dropped],
    }

"""A plan in rows, for the command line."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from jobs.memory import predicted_gib
from jobs.plan import Plan
from sparsehpc.pruning.patterns import parse_pattern


def class_rows(plan: Plan) -> list[tuple[object, ...]]:
    """One row per resource class and model: cells, what a job asks for, and the memory it is expected to take."""
    predicted = predicted_gib(plan)
    counts = Counter((cell.resource, cell.model, cell.dtype) for cell in plan.cells)
    rows: list[tuple[object, ...]] = []
    for (name, model, dtype), cells in counts.items():
        resource = plan.study.resources[name]
        expected = f"{predicted[name, model, dtype]:.1f}"
        asked = (resource.cpus, f"{resource.memory_gib:g}", expected, resource.gpus, resource.minutes)
        rows.append((name, resource.device, model, dtype, cells, *asked))
    return rows


def dropped_rows(plan: Plan) -> list[tuple[object, ...]]:
    """One row per reason."""
    return [(d.model, d.method, d.pattern, d.variant or "all", d.cells, d.reason) for d in plan.dropped]


def memory_warnings(plan: Plan) -> list[str]:
    """A line for each class and model that is expected to need more memory than it asks for."""
    lines = []
    for (name, model, dtype), expected in predicted_gib(plan).items():
        asked = plan.study.resources[name].memory_gib
        if expected > asked:
            lines.append(
                f"{model} ({dtype}) is expected to take {expected:.1f} GiB, resources.{name} asks for {asked:g}: "
                f"raise memory_gib"
            )
    return lines


def pattern_notes(plan: Plan) -> list[str]:
    """A line for each pattern that fixes the sparsity itself."""
    patterns = dict.fromkeys(cell.pruning.pattern for cell in plan.cells if not cell.pruning.is_dense)
    fixed = {name: parse_pattern(name).fixed_sparsity for name in patterns}
    return [
        f"pattern {name} fixes the sparsity at {float(100 * sparsity):g} %: one cell, whatever 'sparsities' says"
        for name, sparsity in fixed.items()
        if sparsity is not None
    ]


def plan_summary(plan: Plan) -> dict[str, Any]:
    """The same for programs."""
    counts = Counter((cell.resource, cell.model, cell.revision, cell.dtype, cell.device) for cell in plan.cells)
    predicted = predicted_gib(plan)
    return {
        "study": plan.study.name,
        "cells_total": len(plan.cells),
        "classes": [
            {
                "resource": resource,
                "model": model,
                "revision": revision,
                "dtype": dtype,
                "device": device,
                "cells": n,
                "memory_expected_gib": round(predicted[resource, model, dtype], 2),
            }
            for (resource, model, revision, dtype, device), n in counts.items()
        ],
        "resources": {name: dataclasses.asdict(resource) for name, resource in plan.study.resources.items()},
        "dropped": [dataclasses.asdict(entry) for entry in plan.dropped],
    }

"""JSON Schema of study files: keys and types from `jobs.spec`, enumerations from the registries."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import TypeAdapter

from jobs.spec import CalibrationTable, EvaluationTable, GridTable, LatencyTable, ModelTable, StudyTable
from slurm.resources import FLAGS, LIMITS
from sparsehpc.pruning.base import METHODS


def study_schema() -> dict[str, Any]:
    """Schema of the whole file, one object without references."""
    grid = _table(GridTable)
    for name, options in _method_options().items():
        grid["properties"].setdefault(name, options)
    for axis in ("allocation", "refit", "true_sequential"):
        several = grid["properties"][axis]
        grid["properties"][axis] = {"anyOf": [several["items"], several], "default": several["default"][0]}
    resources = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            key: {
                "type": "number" if key == "memory_gib" else "integer",
                **({"exclusiveMinimum": 0} if key == "memory_gib" else {"minimum": 0 if key == "gpus" else 1}),
                "maximum": most,
            }
            for key, most in LIMITS.items()
        }
        | {name: {"type": "boolean"} for name in FLAGS},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sparsehpc study",
        "type": "object",
        "additionalProperties": False,
        "required": ["study", "models", "grid", "evaluation"],
        "properties": {
            "study": _table(StudyTable),
            "models": {"type": "array", "minItems": 1, "items": _table(ModelTable)},
            "grid": {"anyOf": [grid, {"type": "array", "minItems": 1, "items": grid}]},
            "evaluation": _table(EvaluationTable),
            "calibration": _table(CalibrationTable),
            "latency": _table(LatencyTable),
            "resources": {"type": "object", "minProperties": 1, "additionalProperties": resources},
        },
    }


def _table(kind: type[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = TypeAdapter(kind).json_schema()
    schema["description"] = (kind.__doc__ or "").split("\n\n")[0]
    return schema


def _method_options() -> dict[str, Any]:
    """Option name to its schema, one value or a list of them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, method in METHODS:
        for option, kind in typing.get_type_hints(method.options_type).items():
            one = TypeAdapter(kind).json_schema()
            found.setdefault(option, []).append({**one, "title": f"option of {name}"})
    return {
        option: {"anyOf": [*alternatives, {"type": "array", "minItems": 1, "items": {"anyOf": alternatives}}]}
        for option, alternatives in found.items()
    }

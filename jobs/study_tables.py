"""Tables of a study file: each by its type's rules, then the rules that look at several; every problem is collected."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from jobs.spec import (
    DEFAULT_RESOURCE,
    CalibrationTable,
    EvaluationTable,
    GridTable,
    LatencyTable,
    ModelTable,
    Study,
    StudyTable,
    show,
)
from slurm.resources import Resources
from slurm.resources import problems as resource_problems
from sparsehpc.core.errors import UserError, unknown
from sparsehpc.core.spec import Scalar
from sparsehpc.models.family import FAMILIES
from sparsehpc.models.target import resolve
from sparsehpc.pruning.base import METHODS, canonical_options

#: Tables of a study file, in the order the template writes them.
TABLES = ("study", "models", "grid", "evaluation", "calibration", "latency", "resources")

T = TypeVar("T")


class Reader:
    """Collects problems while it reads the tables one by one."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def study(self, data: Mapping[str, Any], text: str, path: Path) -> Study | None:
        """The whole file; None where there is a problem."""
        for key in data:
            if key not in TABLES:
                self.problems.append(unknown("table or key", key, TABLES))
        head = self.table(StudyTable, data, "study")
        models = self.tables(ModelTable, data, "models")
        grids = self.grids(data)
        evaluation = self.table(EvaluationTable, data, "evaluation")
        calibration = self.table(CalibrationTable, data, "calibration") if "calibration" in data else None
        latency = self.table(LatencyTable, data, "latency") if "latency" in data else None
        resources = self.resources(data.get("resources", {"cpu": {}}))
        self._names(data, path.parent)
        models = self.resolved(models, path.parent)
        self._across(grids, calibration, data)
        self._threads(models, latency, resources)
        if head is None or evaluation is None or self.problems:
            return None
        return Study(
            path=path,
            text=text,
            study=head,
            models=tuple(models.values()),
            grids=tuple(grids.values()),
            evaluation=evaluation,
            calibration=calibration,
            resources=resources,
            latency=latency,
        )

    def table(self, kind: type[T], data: Mapping[str, Any], key: str) -> T | None:
        """One required table."""
        if key not in data:
            self.problems.append(f"[{key}] is missing; it needs {_required(kind)}")
            return None
        return self.checked(kind, data[key], key)

    def tables(self, kind: type[T], data: Mapping[str, Any], key: str) -> dict[str, T]:
        """A list of tables by their place in the file; those that are wrong are left out."""
        entries = data.get(key, [])
        if not isinstance(entries, list) or not entries:
            self.problems.append(f"[[{key}]] is missing; every entry needs {_required(kind)}")
            return {}
        read = {f"{key}[{n}]": self.checked(kind, entry, f"{key}[{n}]") for n, entry in enumerate(entries, 1)}
        return {place: entry for place, entry in read.items() if entry is not None}

    def checked(self, kind: type[T], value: object, place: str) -> T | None:
        """One table by its type's rules."""
        if not isinstance(value, Mapping):
            self.problems.append(f"{place} is {show(value)}; legal: a table of {', '.join(_keys(kind))}")
            return None
        try:
            return TypeAdapter(kind).validate_python(dict(value))
        except ValidationError as error:
            # An axis with a wrong entry is also reported as too short: only an empty one is.
            details = [d for d in error.errors(include_url=False) if d["type"] != "too_short" or not d["input"]]
            self.problems += [_describe(detail, place, kind) for detail in details]
            return None

    def _names(self, data: Mapping[str, Any], folder: Path) -> None:
        """Models and resource classes that are not there, whatever else is wrong with the tables that name them."""
        entries, tables = data.get("models"), data.get("resources", {"cpu": {}})
        classes = list(tables) if isinstance(tables, Mapping) else []
        with contextlib.chdir(folder):
            for number, entry in enumerate(entries if isinstance(entries, list) else [], 1):
                place = f"models[{number}]"
                if not isinstance(entry, Mapping):
                    continue  # told by the type's rules
                name, revision = entry.get("id"), entry.get("revision")
                resource = entry.get("resource", DEFAULT_RESOURCE)
                if isinstance(name, str):
                    try:
                        resolve(name, revision if isinstance(revision, str) else None)
                    except UserError as error:
                        self.problems.append(f"{place}.id: {error.message}{f'; {error.hint}' if error.hint else ''}")
                if isinstance(resource, str) and resource not in classes:
                    self.problems.append(f"{place}.resource: {unknown('resource class', resource, classes)}")

    def resolved(self, models: Mapping[str, ModelTable], folder: Path) -> dict[str, ModelTable]:
        """Models under their one name and with their pinned revision, so that ids do not hang on the spelling."""
        found = {}
        with contextlib.chdir(folder):
            for place, model in models.items():
                with contextlib.suppress(UserError):  # told by `_names`
                    target = resolve(model.id, model.revision)
                    found[place] = dataclasses.replace(model, id=target.model, revision=target.revision)
        return found

    def grids(self, data: Mapping[str, Any]) -> dict[str, GridTable]:
        """``[grid]`` or several ``[[grid]]``; keys that are no axis belong to the methods."""
        entries = data.get("grid")
        if isinstance(entries, Mapping):
            entries = [entries]
            places = ["grid"]
        elif isinstance(entries, list) and entries:
            places = [f"grid[{n}]" for n in range(1, len(entries) + 1)]
        else:
            self.problems.append(f"[grid] is missing; it needs {_required(GridTable)}")
            return {}
        found = {}
        for place, entry in zip(places, entries, strict=True):
            axes, rest = entry, {}
            if isinstance(entry, Mapping):
                known = _keys(GridTable)
                axes = {key: value for key, value in entry.items() if key in known}
                rest = {key: value for key, value in entry.items() if key not in known}
            grid = self.checked(GridTable, axes, place)
            methods = axes.get("methods") if isinstance(axes, Mapping) else None
            options = self.options(rest, methods, place)
            if grid is not None:
                found[place] = dataclasses.replace(grid, options=options)
        return found

    def options(self, rest: Mapping[str, Any], methods: object, place: str) -> dict[str, tuple[Scalar, ...]]:
        """Keys of a grid that are no axis: each must be an option of one of the grid's methods."""
        written = methods if isinstance(methods, list) else []
        named = [name for name in written if name in METHODS]
        if len(named) < len(written) or not written:
            named = METHODS.names()  # which methods are meant is told elsewhere; any method's option is no second error
        accepted: dict[str, tuple[Scalar, ...]] = {}
        for key, value in rest.items():
            owners = [name for name in named if key in _keys(METHODS.get(name).options_type)]
            if not owners:
                legal = {*_keys(GridTable), *(option for name in named for option in _option_names(name))}
                self.problems.append(f"{place}: {unknown('key', key, legal)}")
                continue
            values = tuple(_plain(each) for each in (value if isinstance(value, list) else [value]))
            if not values or len(set(map(repr, values))) != len(values):
                self.problems.append(f"{place}.{key} is {show(value)}; legal: one value, or a list of distinct ones")
            before = len(self.problems)
            for name in owners:
                for each in values:
                    try:
                        canonical_options(name, {key: each})
                    except UserError as error:
                        for problem in getattr(error, "problems", (error.message,)):
                            self.problems.append(f"{place}.{key}: {problem}")
            if len(self.problems) == before:
                accepted[key] = values
        return accepted

    def resources(self, tables: object) -> dict[str, Resources]:
        """``[resources.NAME]``, by name."""
        if not isinstance(tables, Mapping) or not tables:
            self.problems.append(f"resources is {show(tables)}; legal: tables [resources.NAME]")
            return {}
        found = {}
        for name, table in tables.items():
            plain = {key: _plain(value) for key, value in table.items()} if isinstance(table, Mapping) else table
            wrong = resource_problems(name, plain)
            self.problems += wrong
            if not wrong:
                found[name] = Resources.from_table(name, plain)
        return found

    def _across(
        self,
        grids: Mapping[str, GridTable],
        calibration: CalibrationTable | None,
        data: Mapping[str, Any],
    ) -> None:
        """Rules that look at more than one table."""
        for place, grid in grids.items():
            for what, learning in _learning(grid).items():
                if calibration is None and "calibration" not in data:
                    self.problems.append(
                        f"{place}.methods: {', '.join(learning)} {what}; add a [calibration] table "
                        f"(it needs {_required(CalibrationTable)})"
                    )

    def _threads(
        self, models: Mapping[str, ModelTable], latency: LatencyTable | None, classes: Mapping[str, Resources]
    ) -> None:
        """Timings have a core for every thread."""
        asked = 0 if latency is None or latency.threads is None else latency.threads
        for name in dict.fromkeys(model.resource for model in models.values()):
            if name in classes and asked > classes[name].cpus and classes[name].device == "cpu":
                cpus = classes[name].cpus
                self.problems.append(f"latency.threads is {asked}; legal: at most {cpus}, the cpus of resources.{name}")


def _keys(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name != "options"]


def _required(kind: type[Any]) -> str:
    missing = dataclasses.MISSING
    return ", ".join(
        field.name
        for field in dataclasses.fields(kind)
        if field.default is missing and field.default_factory is missing
    )


def _option_names(method: str) -> Iterable[str]:
    return _keys(METHODS.get(method).options_type)


def _plain(value: Any) -> Any:
    """Decimals as floats, for tables whose numbers are not exact decimals by meaning."""
    return float(value) if isinstance(value, Decimal) else value


def _describe(detail: Any, place: str, kind: type[Any]) -> str:
    """One problem that pydantic found, in the words of every other message."""
    where, sort, value = _place(place, detail["loc"]), detail["type"], detail["input"]
    if sort in ("unexpected_keyword_argument", "extra_forbidden"):
        if detail["loc"][-1] == "trust_remote_code":
            return (
                f"{where} cannot be: Python code that comes with a model is never run, its layers are those of a known "
                f"family ({', '.join(FAMILIES.names())}); leave the key out"
            )
        return f"{place}: {unknown('key', detail['loc'][-1], _keys(kind))}"
    if sort in ("missing", "missing_argument"):
        return f"{where} is missing"
    if sort == "value_error":
        legal = str(detail["ctx"]["error"])
        return (
            f"{where}: {legal}"
            if legal.startswith(("unknown ", "corpus "))
            else f"{where} is {show(value)}; legal: {legal}"
        )
    if sort == "int_type":
        return f"{where} is {show(value)}; legal: a whole number"
    if sort == "too_short":
        return f"{where} is empty; legal: at least one value"
    if sort == "tuple_type":
        return f"{where} is {show(value)}; legal: a list"
    legal = detail["msg"].removeprefix("Input should be ")
    return f"{where} is {show(value)}; legal: {legal}"


def _place(place: str, loc: Iterable[str | int]) -> str:
    for part in loc:
        place += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return place


def _learning(grid: GridTable) -> dict[str, list[str]]:
    """Methods that text must be read for, by what reads it."""
    found: dict[str, list[str]] = {}
    for name in grid.methods:
        needs = METHODS.get(name).needs_calibration
        if needs():
            what = "learns from text"
        elif any(needs(refit=refit) for refit in grid.refit):
            what = "with refit = true learns from text"
        elif others := [allocation for allocation in grid.allocation if needs(allocation)]:
            what = f"with allocation {', '.join(others)} learns from text"
        else:
            continue
        found.setdefault(what, []).append(name)
    return found

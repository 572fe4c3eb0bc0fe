"""The state of a run: every planned cell, by class and by cause, and what to do next."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.fates import STATES, Fate, find_fates
from jobs.usage import Usage, usage
from slurm.task import CHANGED
from slurm.track import Tracker
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """Cells of a run and where each stands.

    Parameters
    ----------
    run
        The run folder.
    plan
        Columns ``cell_id, resource, model, spec`` of the plan.
    fates
        By cell id, in plan order.
    tracker
        Submissions, and the scheduler's answer.
    """

    run: RunFolder
    plan: dict[str, list[str]]
    fates: dict[str, Fate]
    tracker: Tracker

    @property
    def headings(self) -> tuple[str, ...]:
        """Of `class_rows`."""
        return ("class", "model", "planned", *STATES)

    @property
    def counts(self) -> dict[str, int]:
        """``expected`` and the number of cells in each state."""
        found = Counter(fate.state for fate in self.fates.values())
        return {"expected": len(self.fates), **{state: found[state] for state in STATES}}

    @property
    def causes(self) -> Counter[str]:
        """Failed cells by cause."""
        return sum(self.class_causes().values(), Counter[str]())

    @property
    def problems(self) -> tuple[str, ...]:
        """What a reader has to know."""
        changed = sum((item.folder(self.run) / CHANGED).exists() for item in self.tracker.submissions)
        if not changed:
            return self.tracker.problems
        words = f"{changed} submission{'s' * (changed != 1)} ran code that was changed after it was submitted"
        return (*self.tracker.problems, f"{words}: provenance of the cells names it")

    def class_causes(self) -> dict[tuple[str, str], Counter[str]]:
        """Failed cells by cause, of each resource class and model that has some."""
        found: dict[tuple[str, str], Counter[str]] = {}
        for resource, model, fate in zip(self.plan["resource"], self.plan["model"], self.fates.values(), strict=True):
            if fate.state == "failed":
                found.setdefault((resource, model), Counter())[fate.cause] += 1
        return found

    def class_rows(self) -> list[tuple[object, ...]]:
        """One row per resource class and model, and one for all."""
        groups: dict[tuple[str, str], Counter[str]] = {}
        for resource, model, fate in zip(self.plan["resource"], self.plan["model"], self.fates.values(), strict=True):
            groups.setdefault((resource, model), Counter())[fate.state] += 1
        rows: list[tuple[object, ...]] = [
            (*names, counts.total(), *(counts[state] for state in STATES)) for names, counts in groups.items()
        ]
        counts = self.counts
        return [*rows, ("all", "", counts["expected"], *(counts[state] for state in STATES))]

    def cell_rows(self, *, only_failed: bool) -> list[tuple[str, str, str, str]]:
        """One row per cell: id, state, what it is, why (first line)."""
        return [
            (cell_id, f"{fate.state} {fate.cause}".strip(), Cell.from_json(spec).label(), _first_line(fate.reason))
            for (cell_id, fate), spec in zip(self.fates.items(), self.plan["spec"], strict=True)
            if not only_failed or fate.state in ("failed", "damaged")
        ]

    def usage(self) -> list[Usage]:
        """Asked against used, by class, as far as accounting knows."""
        return usage(self.tracker)

    def next_command(self, named: Path) -> str:
        """What a person does next."""
        counts = self.counts
        if counts["done"] == counts["expected"]:
            page = self.run.report / "index.html"
            return f"read {page}" if page.exists() else f"sparsehpc aggregate {named}, then sparsehpc report {named}"
        if counts["running"] or counts["queued"] or counts["unclear"]:
            return f"sparsehpc status {named} --watch; tables of what is there: sparsehpc aggregate {named}"
        sent = bool(self.tracker.submissions)
        if counts["failed"] or counts["damaged"]:
            if sent:
                return f"sparsehpc status {named} --failed says why; sparsehpc retry {named} sends them again"
            return f"sparsehpc status {named} --failed says why; running the study again does what is left"
        return f"{'submit' if sent else 'run or submit'} the study again: it does what is left"

    def as_json(self, *, with_cells: bool) -> dict[str, Any]:
        """The same for programs."""
        classes = [dict(zip(self.headings, row, strict=True)) for row in self.class_rows()[:-1]]
        by_class = self.class_causes()
        for row in classes:
            row["failed_by_cause"] = dict(by_class.get((str(row["class"]), str(row["model"])), {}))
        value: dict[str, Any] = {
            "run": str(self.run.root),
            "cells": self.counts,
            "failed_by_cause": dict(self.causes),
            "classes": classes,
            "usage": [dataclasses.asdict(entry) for entry in self.usage()],
            "jobs_active": len(self.tracker.unfinished_jobs()),
            "problems": list(self.problems),
        }
        if with_cells:
            value["states"] = {
                cell_id: {"state": fate.state, "cause": fate.cause, "reason": fate.reason}
                for cell_id, fate in self.fates.items()
            }
        return value


def run_status(run: RunFolder, *, fresh: bool = False, verify: bool = False) -> Status:
    """Look at every planned cell: files first, then at most one question to squeue and one to sacct."""
    columns = ["cell_id", "resource", "model", "spec"]
    try:
        plan = pq.read_table(run.plan, columns=columns, memory_map=False).to_pydict()
    except (OSError, ValueError) as error:
        raise UserError(f"the plan {run.plan} cannot be read: {error}") from error
    fates, tracker = find_fates(run, plan["cell_id"], fresh=fresh, verify=verify)
    return Status(run, plan, fates, tracker)


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""

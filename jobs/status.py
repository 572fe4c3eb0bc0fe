"""The state of a run from its files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from aggregate.scan import STATES, Coverage, scan
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """Cells of a run and the state of each.

    Parameters
    ----------
    run
        The run folder.
    coverage
        The plan beside the state of every shard.
    """

    run: RunFolder
    coverage: Coverage

    @property
    def headings(self) -> tuple[str, ...]:
        """Of `class_rows`."""
        return ("class", "model", "planned", *STATES)

    @property
    def causes(self) -> Counter[str]:
        """Failed cells by cause."""
        return Counter(state.cause for state in self.coverage.states if state.state == "failed")

    def class_rows(self) -> list[tuple[object, ...]]:
        """One row per resource class and model, and one for all."""
        columns = (self.coverage.plan[name].to_pylist() for name in ("resource", "model"))
        groups: dict[tuple[str, str], Counter[str]] = {}
        for resource, model, state in zip(*columns, self.coverage.states, strict=True):
            groups.setdefault((resource, model), Counter())[state.state] += 1
        rows: list[tuple[object, ...]] = [
            (*names, counts.total(), *(counts[state] for state in STATES)) for names, counts in groups.items()
        ]
        counts = self.coverage.counts
        return [*rows, ("all", "", counts["expected"], *(counts[state] for state in STATES))]

    def cell_rows(self, *, only_failed: bool) -> list[tuple[str, str, str, str]]:
        """One row per cell: id, state, what it is, why it failed (first line)."""
        return [
            (cell_id, f"{state.state} {state.cause}".strip(), Cell.from_json(spec).label(), _first_line(state.reason))
            for cell_id, spec, state in zip(
                self.coverage.cell_ids, self.coverage.plan["spec"].to_pylist(), self.coverage.states, strict=True
            )
            if not only_failed or state.state in ("failed", "damaged")
        ]

    def next_command(self, named: Path) -> str:
        """What a person does next."""
        counts = self.coverage.counts
        if counts["done"] == counts["expected"]:
            page = self.run.report / "index.html"
            return f"read {page}" if page.exists() else f"sparsehpc aggregate {named}, then sparsehpc report {named}"
        if counts["failed"] or counts["damaged"]:
            return (
                f"sparsehpc status {named} --failed says why; running or submitting the study again does what is left"
            )
        return "run or submit the study again: it does what is left"

    def as_json(self, *, with_cells: bool) -> dict[str, Any]:
        """The same for programs."""
        value: dict[str, Any] = {
            "run": str(self.run.root),
            "cells": self.coverage.counts,
            "failed_by_cause": dict(self.causes),
            "classes": [dict(zip(self.headings, row, strict=True)) for row in self.class_rows()[:-1]],
        }
        if with_cells:
            value["states"] = {
                cell_id: {"state": state.state, "cause": state.cause, "reason": state.reason}
                for cell_id, state in zip(self.coverage.cell_ids, self.coverage.states, strict=True)
            }
        return value


def run_status(run: RunFolder) -> Status:
    """Look at every planned cell's files."""
    return Status(run, scan(run))


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""

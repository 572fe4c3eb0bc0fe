"""What should exist against what does: the plan, and the state of every cell's shard."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aggregate.compact import Pack, load_packs
from sparsehpc.core import schema, shards
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import ShardState

#: States in the order people want to read them.
STATES = ("done", "failed", "damaged", "missing")

#: Threads that look at shards: the wait is for the file system, not for the processor.
_LOOKERS = 8

#: Shards that a thread looks at before it asks for more: asking for each costs as much as looking at a few.
_AT_ONCE = 25


@dataclass(frozen=True, slots=True)
class Coverage:
    """The plan beside the state of each of its cells.

    Parameters
    ----------
    plan
        Rows in `schema.PLAN`, in plan order.
    states
        One state per row of the plan.
    rows
        The cell's own row (`schema.CELL`) where its shard is done, None elsewhere.
    packs
        Packs that hold some of the cells.
    """

    plan: pa.Table
    states: tuple[ShardState, ...]
    rows: tuple[dict[str, Any] | None, ...]
    packs: tuple[Pack, ...] = ()

    @property
    def cell_ids(self) -> list[str]:
        """Identifiers of all planned cells, in plan order."""
        return [str(value) for value in self.plan.column("cell_id").to_pylist()]

    @property
    def counts(self) -> dict[str, int]:
        """``expected`` and the number of cells in each state."""
        found: Counter[str] = Counter(state.state for state in self.states)
        return {"expected": len(self.states), **{name: found[name] for name in STATES}}

    @property
    def complete(self) -> bool:
        """Whether every planned cell is done."""
        return all(state.state == "done" for state in self.states)

    def of_kind(self, kind: str) -> tuple[Coverage, list[int]]:
        """Cells that measure ``behaviour`` or ``latency``, and their positions in the whole plan."""
        kinds = pc.fill_null(self.plan["kind"], "behaviour").to_pylist()
        chosen = [position for position, one in enumerate(kinds) if one == kind]
        return (
            Coverage(
                self.plan.take(pa.array(chosen, pa.int64())),
                tuple(self.states[position] for position in chosen),
                tuple(self.rows[position] for position in chosen),
                self.packs,
            ),
            chosen,
        )

    def with_damage(self, damage: dict[int, str]) -> Coverage:
        """Mark cells (by position in the plan) whose figures turned out to be damaged when they were read."""
        if not damage:
            return self
        return Coverage(
            self.plan,
            tuple(
                ShardState("damaged", damage[position]) if position in damage else state
                for position, state in enumerate(self.states)
            ),
            tuple(None if position in damage else row for position, row in enumerate(self.rows)),
            self.packs,
        )

    def table(self) -> pa.Table:
        """The ``coverage`` table: keys of each planned cell, its state, cause and reason."""
        table = self.plan.drop_columns(["spec"])
        for name in ("state", "cause", "reason"):
            table = table.append_column(name, pa.array([getattr(state, name) for state in self.states], pa.string()))
        return table


def read_plan(run: RunFolder) -> pa.Table:
    """Read the plan of a run; `UserError` where the folder is none of ours."""
    try:
        table = pq.read_table(pa.BufferReader(run.plan.read_bytes()))
    except FileNotFoundError as error:
        raise UserError(
            f"{run.root} is not a run folder: it holds no {run.plan.name}",
            "sparsehpc run STUDY --out DIR makes one",
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"the plan of {run.root} cannot be read: {error}", "make the run folder again from its study.toml"
        ) from error
    try:
        table = schema.conform(table, schema.PLAN)
    except ValueError as error:
        raise UserError(
            f"the plan of {run.root} is of another version: {error}",
            "use the sparsehpc that made the run (its version is in provenance.json), or make the run again",
        ) from error
    return table.sort_by("order")


def scan(run: RunFolder, *, verify: bool = False, plan: pa.Table | None = None, packs: bool = False) -> Coverage:
    """Look at every planned cell.

    Parameters
    ----------
    run
        The run folder.
    verify
        Also read the measurements and compare their digest; `aggregate.reduce` does so anyway when it
        reads them, so the default looks at the cells' rows only.
    plan
        The plan, if it was read already.
    packs
        Take the rows of cells from packs where these still count (`aggregate.compact`).
    """
    table = read_plan(run) if plan is None else plan
    ids = [str(value) for value in table.column("cell_id").to_pylist()]
    found_packs = tuple(load_packs(run)) if packs and not verify else ()
    packed = {str(row["cell_id"]): row for pack in found_packs for row in pack.rows}
    left = [cell_id for cell_id in ids if cell_id not in packed]
    batches = [left[start : start + _AT_ONCE] for start in range(0, len(left), _AT_ONCE)]
    with ThreadPoolExecutor(_LOOKERS) as pool:
        parts = pool.map(lambda batch: [_look(run, cell_id, verify) for cell_id in batch], batches)
        looked = dict(zip(left, (found for part in parts for found in part), strict=True))
    done = ShardState("done")
    found = [(done, packed[cell_id]) if cell_id in packed else looked[cell_id] for cell_id in ids]
    return Coverage(table, tuple(state for state, _ in found), tuple(row for _, row in found), found_packs)


def relative_reason(run: RunFolder, reason: str) -> str:
    """Drop the run folder's own place from a message, so that tables and reports name no home folder."""
    prefixes = {str(run.root), os.path.abspath(run.root), str(Path(run.root).resolve())}  # noqa: PTH100
    for prefix in sorted(prefixes - {".", "/"}, key=len, reverse=True):
        reason = reason.replace(f"{prefix}{os.sep}", "")
    return reason


def done_positions(coverage: Coverage) -> Sequence[int]:
    """Positions in the plan of the cells that are done."""
    return [position for position, state in enumerate(coverage.states) if state.state == "done"]


def _look(run: RunFolder, cell_id: str, verify: bool) -> tuple[ShardState, dict[str, Any] | None]:
    folder = run.cell(cell_id)
    try:
        row = shards.read_row(folder, cell_id)
        if verify:
            shards.read_measurements(folder, row)
        elif not folder.measurements.is_file():
            return ShardState("damaged", f"{folder.measurements.name} is missing"), None
    except (shards.ShardError, OSError):
        state = shards.shard_state(folder, cell_id, verify=verify)
        return state._replace(reason=relative_reason(run, state.reason)), None
    return ShardState("done"), row

"""Two runs side by side: cells matched by content, what changed around them, and a verdict per figure.

`aggregate.diff_text` writes it down.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from aggregate.compare import BETTER_THAN, SAME, UNKNOWN, WORSE_THAN, Difference, WindowSums, difference, exact
from aggregate.describe import provenance_of
from aggregate.figures.data import Record, missing, records
from aggregate.figures.style import percent
from aggregate.floor import floor_of
from aggregate.latency import MACHINE
from aggregate.private import public, scrub
from aggregate.tables import read_latency, read_table
from sparsehpc.core.layout import RunFolder

#: Figures that are set beside each other: name, and whether windows allow a paired interval.
FIGURES = (
    ("perplexity", True),
    ("top1_agreement", True),
    ("kl", True),
    ("params_nonzero", False),
    ("bytes_total", False),
    ("flops_executed", False),
)

#: Digests that must agree before figures of behaviour may be compared.
_INPUTS = (
    ("snapshot_digest", "the weights differ"),
    ("evaluation_digest", "the evaluation text differs"),
    ("calibration_digest", "the calibration text differs"),
)

#: What is compared of machines.
_MACHINE = ("cpu_model", "device_name", "threads")

#: Of a figure without an interval.
_NO_BOUNDS = (math.nan, math.nan)


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One figure of one cell in both runs.

    Parameters
    ----------
    cell_id, what
        The cell, and what it is in a few words.
    metric
        Name of the figure.
    first, second
        The figure in each run; NaN where it was not measured.
    difference
        Second minus first, and the verdict.
    first_bounds, second_bounds
        95 % interval of the figure in each run; of a speed-up its slowest and fastest round; NaN where there is none.
    """

    cell_id: str
    what: str
    metric: str
    first: float
    second: float
    difference: Difference
    first_bounds: tuple[float, float] = _NO_BOUNDS
    second_bounds: tuple[float, float] = _NO_BOUNDS


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """What `diff_runs` found.

    Parameters
    ----------
    changed
        Facts about plan, code, versions and machines that are not equal, in words.
    lines
        Figures of the cells that both plans hold.
    only_first, only_second
        Cells that only one plan holds.
    """

    changed: Sequence[str]
    lines: Sequence[Line]
    only_first: Sequence[str]
    only_second: Sequence[str]

    @property
    def verdicts(self) -> dict[str, int]:
        """Number of figures by verdict."""
        found = Counter(line.difference.verdict for line in self.lines)
        return {name: found[name] for name in (SAME, BETTER_THAN, WORSE_THAN, UNKNOWN)}

    @property
    def exit_code(self) -> int:
        """0 where the second run holds every cell of the first, with every figure the same or better; 1 otherwise."""
        bad = self.verdicts[WORSE_THAN] or self.verdicts[UNKNOWN] or self.only_first
        return 0 if self.lines and not bad else 1

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "verdicts": self.verdicts,
            "changed": list(self.changed),
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "figures": [
                {
                    "cell_id": line.cell_id,
                    "cell": line.what,
                    "metric": line.metric,
                    **{
                        f"{name}{end}": _finite(value)
                        for name, figure, bounds in (
                            ("first", line.first, line.first_bounds),
                            ("second", line.second, line.second_bounds),
                        )
                        for end, value in zip(("", "_lo", "_hi"), (figure, *bounds), strict=True)
                    },
                    **{key: _finite(value) for key, value in line.difference._asdict().items()},
                }
                for line in self.lines
            ],
        }


def diff_runs(first: RunFolder, second: RunFolder) -> Comparison:
    """Compare two runs that were aggregated.

    Parameters
    ----------
    first
        What is compared with.
    second
        What is judged: better and worse are said of it.
    """
    plans = [read_table(run, "coverage").to_pandas().set_index("cell_id") for run in (first, second)]
    common = [cell for cell in plans[1].index if cell in plans[0].index]
    only = [[cell for cell in plan.index if cell not in other.index] for plan, other in (plans, plans[::-1])]
    return Comparison(
        tuple(_changed(first, second, only)),
        tuple(_lines(first, second, plans, common)),
        tuple(only[0]),
        tuple(only[1]),
    )


def cell_name(row: Record) -> str:
    """Say in a few words what a cell is."""
    seed = "" if missing(row.get("calibration_seed")) else f" seed {row['calibration_seed']:.0f}"
    timed = " latency" if row.get("kind") == "latency" else ""
    if row["method"] == "none":
        return f"{scrub(row['model'])} {row['dtype']} {row['variant']}{timed}"
    extra = [] if row["allocation"] == "default" else [f"allocation {row['allocation']}"]
    extra += (["refit"] if row["refit"] else []) + ([] if missing(row["true_sequential"]) else ["true sequential"])
    extra += [] if row["options"] == "{}" else [scrub(str(row["options"]))]
    return (
        f"{scrub(row['model'])} {row['dtype']} {' '.join([row['method'], row['pattern'], *extra])} "
        f"{percent(row['sparsity_target'])} {row['variant']}{seed}{timed}"
    )


def _lines(first: RunFolder, second: RunFolder, plans: list[pd.DataFrame], common: list[str]) -> Iterator[Line]:
    tables = [_by_cell(run, "global") for run in (first, second)]
    costs = [_by_cell(run, "costs") for run in (first, second)]
    sums = [WindowSums(read_table(run, "windows").to_pandas()) for run in (first, second)]
    times = [_times(run) for run in (first, second)]
    for cell in common:
        if plans[1].loc[cell].get("kind") == "latency":
            yield _timed(cell, plans, [each.get(cell) for each in times])
            continue
        rows = [table.get(cell) for table in tables]
        name = cell_name({str(key): value for key, value in plans[1].loc[cell].items()})
        why = _not_comparable(cell, plans, [cost.get(cell) for cost in costs])
        for metric, paired in FIGURES:
            values = [math.nan if row is None or missing(row.get(metric)) else float(row[metric]) for row in rows]
            if why:
                found = Difference(UNKNOWN, math.nan, math.nan, math.nan, why)
            elif all(math.isnan(value) for value in values):
                continue
            elif paired:
                floor = max(floor_of(metric, row or {}) for row in rows)
                there, here = (each.get(cell, metric) for each in sums)
                found = difference(metric, there, here, floor)
            else:
                found = exact(metric, *values)
                if metric == "params_nonzero" and found.verdict == UNKNOWN and not math.isnan(found.value):
                    found = found._replace(why="another number of weights is zero")
            bounds = [_bounds(row, f"{metric}_lo", f"{metric}_hi") for row in rows]
            yield Line(cell, name, metric, values[0], values[1], found, bounds[0], bounds[1])
            if why:
                break


def _times(run: RunFolder) -> dict[str, Record]:
    table = read_latency(run)
    return {} if table is None else {row["cell_id"]: row for row in records(table)}


def _timed(cell: str, plans: list[pd.DataFrame], rows: list[Record | None]) -> Line:
    """Speed of a timed cell in both runs."""
    name = cell_name({str(key): value for key, value in plans[1].loc[cell].items()})
    values = [math.nan if row is None else float(row["speedup"]) for row in rows]
    there, here = rows
    if there is None or here is None:
        why = _not_comparable(cell, plans, [{}, {}]) or "it was not timed in both"
        found = Difference(UNKNOWN, math.nan, math.nan, math.nan, why)
    else:
        found = _of_times(there, here)
    bounds = [_bounds(row, "speedup_least", "speedup_most") for row in rows]
    return Line(cell, name, "speedup", values[0], values[1], found, bounds[0], bounds[1])


def _of_times(there: Record, here: Record) -> Difference:
    """Another speed only where no round of one is as fast as a round of the other."""
    first, second = float(there["speedup"]), float(here["speedup"])
    if any(there[column] != here[column] for column in MACHINE):
        return Difference(UNKNOWN, math.nan, math.nan, math.nan, "times of two machines do not compare")
    floor = max(
        (float(row["speedup_floor"]) for row in (there, here) if not missing(row["speedup_floor"])), default=1.0
    )
    overlap = there["speedup_least"] <= here["speedup_most"] and here["speedup_least"] <= there["speedup_most"]
    if overlap or max(first / second, second / first) <= floor:
        why = "their rounds overlap" if overlap else "cells that do the same work as dense stray as far"
        return Difference(SAME, second - first, math.nan, math.nan, why)
    verdict = BETTER_THAN if second > first else WORSE_THAN
    why = "no round of one is as fast as a round of the other"
    return Difference(verdict, second - first, math.nan, math.nan, why)


def _not_comparable(cell: str, plans: list[pd.DataFrame], costs: list[Record | None]) -> str:
    for plan, which in zip(plans, ("first", "second"), strict=True):
        state = str(plan.loc[cell, "state"])
        if state != "done":
            return f"it is {state} in the {which} run"
    for column, why in _INPUTS:
        digests = [None if cost is None or missing(cost.get(column)) else cost[column] for cost in costs]
        if digests[0] != digests[1]:
            return why
    return ""


def _bounds(row: Record | None, low: str, high: str) -> tuple[float, float]:
    if row is None or missing(row.get(low)) or missing(row.get(high)):
        return _NO_BOUNDS
    return float(row[low]), float(row[high])


def _by_cell(run: RunFolder, name: str) -> dict[str, Record]:
    frame = read_table(run, name).to_pandas()
    if "convention" in frame:
        frame = frame[frame["convention"] != "study"]
    return {row["cell_id"]: row for row in records(frame)}


def _changed(first: RunFolder, second: RunFolder, only: list[list[str]]) -> Iterator[str]:
    if not any(only):
        yield "the plans hold the same cells"
    left, right = (public(provenance_of(run)) for run in (first, second))
    for key in sorted({*left, *right}):
        if left.get(key) != right.get(key):
            yield f"{key}: {left.get(key, 'absent')} -> {right.get(key, 'absent')}"
    costs = [read_table(run, "costs").to_pandas() for run in (first, second)]
    for column in _MACHINE:
        there, here = (", ".join(sorted({scrub(str(value)) for value in cost[column]})) or "none" for cost in costs)
        if there != here:
            yield f"{column}: {there} -> {here}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

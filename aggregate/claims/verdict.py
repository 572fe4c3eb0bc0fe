"""Judge claims by tables: a pure function of both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from aggregate.claims.file import TABLES, Among, Check, Claim, Condition, Rule, column_problems
from aggregate.compare import WindowSums, difference, exact
from aggregate.diff import cell_name
from aggregate.figures.data import Record, matching, missing, records
from aggregate.statistics import FEWEST_UNITS, TOO_FEW
from aggregate.tables import read_table
from sparsehpc.core import schema
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.layout import RunFolder

TRUE, FALSE, DEPENDS, NOT_MEASURED = "true", "false", "depends", "not measured"

#: What one figure says about a claim.
HOLDS, FAILS, OPEN = "holds", "fails", "cannot be told"

#: What two cells that are compared may differ in without being asked to: how, not what, was pruned.
_OWN = {"cell_id", "resource", "options", "seed", "true_sequential"} | {
    name for name in schema.KEYS.names if name.startswith("calibration_")
}
_SAME = (*(name for name in schema.KEYS.names if name not in _OWN), "convention", "group")

#: What makes a row of a table; the same cell in two runs is one cell.
_IDENTITY = ("cell_id", "convention", "group", "metric", "sparsity_target", "method", "pattern", "variant", "targets")

Tables = Mapping[str, pd.DataFrame]


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """One figure.

    Parameters
    ----------
    cell_id, what
        The cell (empty where a row is about several), and in words.
    value, lo, hi
        The figure and its 95 % interval; NaN where there is none.
    outcome
        `HOLDS`, `FAILS` or `OPEN`.
    against
        Cell that it is compared with.
    note
        Why it cannot be told.
    """

    cell_id: str
    what: str
    value: float
    lo: float
    hi: float
    outcome: str
    against: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one check says."""

    check: Check
    verdict: str
    evidence: tuple[Evidence, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Ruling:
    """What all checks say about a claim."""

    claim: Claim
    verdict: str
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs; a bound that is not there is null."""
        return {
            "id": self.claim.id,
            "says": self.claim.says,
            "stood": self.claim.stood,
            "because": self.claim.because,
            "verdict": self.verdict,
            "checks": [
                {
                    "what": found.check.what,
                    "rule": found.check.holds.words,
                    "verdict": found.verdict,
                    "evidence": [_finite(dataclasses.asdict(each)) for each in found.evidence],
                }
                for found in self.findings
            ],
        }


def load_tables(runs: Sequence[RunFolder]) -> dict[str, pd.DataFrame]:
    """Tables that claims read, of all runs together; a cell that several runs hold counts once, as in the first."""
    if not runs:
        raise UserError("no run was named", "sparsehpc claims RUN...")
    joined = {}
    for name in (*TABLES, "windows"):
        frames = [_whole(run, name) for run in runs]
        filled = [frame for frame in frames if not frame.empty] or frames[:1]
        table = pd.concat([frame.astype(object) for frame in filled], ignore_index=True)
        keys = [key for key in (*_IDENTITY, *(("window",) if name == "windows" else ())) if key in table]
        joined[name] = table.drop_duplicates(keys, ignore_index=True)
    return joined


def _whole(run: RunFolder, name: str) -> pd.DataFrame:
    frame: pd.DataFrame = read_table(run, name).to_pandas()
    if name != "global":
        return frame
    costs = read_table(run, "costs").to_pandas()
    return frame.merge(costs[["cell_id", *(c for c in costs if c not in frame)]], on="cell_id", how="left")


def judge(claims: Sequence[Claim], tables: Tables) -> list[Ruling]:
    """Judge every claim.

    Parameters
    ----------
    claims
        From `aggregate.claims.file.read_claims`.
    tables
        Tables by name, ``windows`` among them for paired differences.

    Raises
    ------
    UserErrors
        Columns that do not exist, comparisons that are ambiguous, figures that are no numbers: all at once.
    """
    problems = column_problems(claims, {name: list(map(str, frame.columns)) for name, frame in tables.items()})
    windows = tables.get("windows")
    sums = WindowSums(pd.DataFrame({"cell_id": [], "window": []}) if windows is None else windows)
    rulings = []
    for claim in claims:
        findings = []
        for number, check in enumerate(claim.check, 1):
            try:
                evidence = tuple(_evidence(check, tables[check.table], sums))
            except _BadQueryError as error:
                problems.append(f"claim {claim.id!r}, check {number}: {error}")
                continue
            findings.append(Finding(check, _of_figures(check.holds, evidence), evidence))
        rulings.append(Ruling(claim, _of_checks([found.verdict for found in findings]), tuple(findings)))
    if problems:
        raise UserErrors("the claims cannot be judged", list(dict.fromkeys(problems)))
    return rulings


class _BadQueryError(Exception):
    """A query that the tables cannot answer as it stands."""


def _of_figures(rule: Rule, evidence: Sequence[Evidence]) -> str:
    outcomes = {each.outcome for each in evidence}
    if not outcomes:
        return NOT_MEASURED
    if rule.refuted:
        return FALSE
    return {frozenset({HOLDS}): TRUE, frozenset({FAILS}): FALSE}.get(frozenset(outcomes), DEPENDS)


def _of_checks(verdicts: Sequence[str]) -> str:
    """All checks must agree; what is measured may disagree already, what is not measured agrees with nothing."""
    measured = set(verdicts) - {NOT_MEASURED}
    if len(measured) > 1:
        return DEPENDS
    # What no figure obeys is false whatever else might be measured; anything better waits for all of it.
    if measured == {FALSE}:
        return FALSE
    return NOT_MEASURED if NOT_MEASURED in verdicts or not measured else measured.pop()


def _evidence(check: Check, table: pd.DataFrame, sums: WindowSums) -> Iterator[Evidence]:
    if any(name not in table for name in check.columns()):
        return  # documented, but no run measured it
    rows = table
    for column, condition in check.where.items():
        rows = rows[_meets(rows[column], column, condition)]
    for row in records(rows[rows[check.value].notna()]):
        found = _compared(check, row, table, sums) if check.against is not None else _plain(check, row)
        if found is None:
            continue
        if check.holds.refuted:
            # Only what the claim says cannot be refutes it; anything else says nothing about it.
            if found.outcome == HOLDS:
                yield dataclasses.replace(found, outcome=FAILS)
        else:
            yield found


def _meets(column: pd.Series[Any], name: str, condition: Condition) -> pd.Series[bool]:
    if isinstance(condition, Among):
        kept = column.notna()
        if condition.is_not is not None:
            kept &= ~_equal(column, condition.is_not)
        for bound, keep in ((condition.least, "ge"), (condition.most, "le")):
            if bound is not None:
                numbers = pd.to_numeric(column, errors="coerce")
                if numbers.isna().any() and not column.isna().equals(numbers.isna()):
                    raise _BadQueryError(f"column {name} holds no numbers, so it has no bounds")
                kept &= numbers.ge(bound) if keep == "ge" else numbers.le(bound)
        return kept
    return _equal(column, condition)


def _equal(column: pd.Series[Any], wanted: Any) -> pd.Series[bool]:
    values = wanted if isinstance(wanted, list) else [wanted]
    # True is no 1 here: a condition on a column of flags must be a flag.
    found = [any(isinstance(cell, bool) == isinstance(v, bool) and cell == v for v in values) for cell in column]
    return pd.Series(found, index=column.index, dtype=bool)


def _plain(check: Check, row: Record) -> Evidence | None:
    value = _number(row, check.value)
    lo, hi = (_number(row, f"{check.value}_{side}") for side in ("lo", "hi"))
    if check.over is not None:
        if missing(row[check.over]):
            return None
        divisor = _number(row, check.over)
        if divisor == 0:
            raise _BadQueryError(f"{check.over} is 0 in {_what(row)}")
        value, lo, hi = value / divisor, lo / divisor, hi / divisor
    note = ""
    units = _number(row, "interval_units")
    if f"{check.value}_lo" in row and math.isnan(lo) and units < FEWEST_UNITS:
        note = f"{units:.0f} windows are {TOO_FEW}"
    return _judged(check, row, (value, lo, hi), note=note)


def _compared(check: Check, row: Record, table: pd.DataFrame, sums: WindowSums) -> Evidence | None:
    """Difference to the cell that is the same but for what ``against`` names."""
    instead = dict(check.against or {})
    # Another model has revisions of its own.
    same = [name for name in _SAME if name in table and not (name == "revision" and "model" in instead)]
    other = matching(table, {name: row[name] for name in same} | instead)
    other = other[other[check.value].notna()]
    if other.empty or row["cell_id"] in set(other["cell_id"]):
        return None
    second = str(other.iloc[0]["cell_id"])
    ours, theirs = sums.get(str(row["cell_id"]), check.value), sums.get(second, check.value)
    counted = ours is None or theirs is None
    # What is counted may be equal in several cells, such as the dense models of two texts.
    if len(other) > 1 and not (counted and other[check.value].nunique() == 1):
        raise _BadQueryError(f"{_what(row)} has {len(other)} cells to compare with; add columns to against")
    if counted:
        found = exact(check.value, _number(records(other)[0], check.value), _number(row, check.value))
    else:
        found = difference(check.value, theirs, ours)
        if math.isnan(found.value):
            return None
    note = found.why if math.isnan(found.lo) and found.why.endswith(TOO_FEW) else ""
    return _judged(check, row, (found.value, found.lo, found.hi), against=second, note=note)


def _judged(
    check: Check, row: Record, figure: tuple[float, float, float], against: str = "", note: str = ""
) -> Evidence:
    outcome = OPEN if note else _outcome(check.holds, *figure)
    return Evidence(str(row.get("cell_id") or ""), _what(row), *figure, outcome, against, note)


def _outcome(rule: Rule, value: float, lo: float, hi: float) -> str:
    """Whether the whole interval, or the figure where there is none, lies on one side of the rule."""
    low, high = (value, value) if math.isnan(lo) or math.isnan(hi) else (lo, hi)
    if rule.above is not None:
        inside, outside = low > rule.above, high <= rule.above
    elif rule.below is not None:
        inside, outside = high < rule.below, low >= rule.below
    elif rule.between is None and rule.equals is None:
        return HOLDS  # any figure at all
    else:
        first, last = rule.between or (rule.equals - rule.within, rule.equals + rule.within)  # type: ignore[operator]
        inside, outside = low >= first and high <= last, high < first or low > last
    return HOLDS if inside else FAILS if outside else OPEN


def _number(row: Record, name: str) -> float:
    """A figure, NaN where the table has none."""
    value: Any = row.get(name)
    if missing(value):
        return math.nan
    if isinstance(value, str | bool):
        raise _BadQueryError(f"{name} is no number: {str(value)[:40]!r}")
    return float(value)


def _what(row: Record) -> str:
    """A row in words."""
    named = {"true_sequential": None, "options": "{}", "allocation": "default", "refit": False, **row}
    words = cell_name(named)
    if not missing(row.get("targets")) and row["method"] != "none" and row["targets"] != "attention+mlp":
        words += f", {row['targets']}"
    if row.get("convention") == "study":
        words += ", old count"
    return words + (f", {row['group']}" if row.get("group") else "")


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in fields.items()
    }

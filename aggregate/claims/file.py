"""The claims file: what somebody said, where it stood, which figures decide, and the rule they are judged by.

A query is data, never code: a table, conditions on its columns, and one column as the figure. It can neither run
anything nor write.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from aggregate.columns import COLUMN_MEANINGS
from sparsehpc.core import schema
from sparsehpc.core.errors import UserErrors, unknown

#: Tables that a query may read.
TABLES = ("global", "groups", "seeds", "tipping")

#: How figures are written: as they are, or a share as percent.
SHOWN = ("number", "percent")

_ID = r"[a-z0-9][a-z0-9-]{0,63}"
_TOP = ("claim",)
_CONFIG = ConfigDict(extra="forbid")

Number = Annotated[float, Field(allow_inf_nan=False)]
Scalar = str | bool | int | float
Text = Annotated[str, Field(min_length=1, max_length=2000)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Among:
    """A condition on a column of numbers or names.

    Parameters
    ----------
    least, most
        Bounds, both included.
    is_not
        Value or values that are left out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    least: Number | None = None
    most: Number | None = None
    is_not: Scalar | list[Scalar] | None = None


Condition = Scalar | list[Scalar] | Among


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """When a figure agrees with the claim. Exactly one of the first four is given, or ``refuted``, alone or with one.

    Parameters
    ----------
    equals
        This value, up to ``within``.
    between
        Not below the first, not above the second.
    above, below
        Strictly on this side.
    refuted
        True: a claim that something cannot be. Any measured figure refutes it (any that obeys the rule beside it, where
        there is one), and none can prove it.
    within
        Tolerance of ``equals``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    equals: Number | None = None
    between: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    above: Number | None = None
    below: Number | None = None
    refuted: bool | None = None
    within: Annotated[Number, Field(ge=0)] = 0.0

    @property
    def problem(self) -> str | None:
        """Why this is no rule; None where it is one."""
        kinds = ("equals", "between", "above", "below")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.refuted is not None):
            return f"give exactly one of {', '.join(kinds)}" + (f", not {' and '.join(given)}" if given else "")
        if self.between is not None and self.between[0] > self.between[1]:
            return f"between {self.between} is empty: the smaller bound comes first"
        if self.refuted is False:
            return "refuted can only be true; leave it out and give another rule"
        if self.within and self.equals is None:
            return "within belongs to equals"
        return None

    @property
    def words(self) -> str:
        """The rule as a reader wants it, without a unit."""
        return self.written(1.0, "")

    def written(self, scale: float, unit: str) -> str:
        """The rule with its numbers multiplied by ``scale`` and followed by ``unit``."""
        if self.equals is not None:
            text = f"equals {scale * self.equals:g}" + (f" ± {scale * self.within:g}" if self.within else "") + unit
        elif self.between is not None:
            text = f"lies between {scale * self.between[0]:g} and {scale * self.between[1]:g}{unit}"
        elif self.above is not None:
            text = f"is above {scale * self.above:g}{unit}"
        elif self.below is not None:
            text = f"is below {scale * self.below:g}{unit}"
        else:
            text = "was measured at all"
        return text


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One query and its rule.

    Parameters
    ----------
    what
        What the figure is, in words.
    table
        One of `TABLES`; ``global`` also holds the columns of ``costs``.
    where
        Conditions by column: a value, a list of values, or bounds; all must hold.
    value
        Column of the figure.
    over
        Column that the figure is divided by.
    against
        What a second cell has instead; the figure is then the difference of the first minus the second, paired over
        evaluation windows where the figure is known per window (of perplexity: the difference of its logarithm).
    holds
        The rule.
    shown
        One of `SHOWN`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    what: Text
    table: str = "global"
    where: Annotated[dict[str, Condition], Field(min_length=1)]
    value: str
    over: str | None = None
    against: Annotated[dict[str, Scalar], Field(min_length=1)] | None = None
    holds: Rule
    shown: str = "number"

    def columns(self) -> list[str]:
        """Every column that the query names."""
        return [*self.where, self.value, *([self.over] if self.over else []), *(self.against or {})]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One claim.

    Parameters
    ----------
    id
        Short name: lower-case letters, digits and hyphens.
    says
        The claim, in our own words.
    stood
        Where it stood.
    because
        Why it is so, or what the verdict leaves open.
    check
        What decides it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    id: Annotated[str, Field(pattern=f"^{_ID}$")]
    says: Text
    stood: Text
    because: Text
    check: Annotated[list[Check], Field(min_length=1, max_length=20)]


_CLAIM = TypeAdapter(Claim)


def read_claims(path: Path) -> list[Claim]:
    """Read and check a claims file.

    Raises
    ------
    UserErrors
        Every problem of the file at once; nothing is half accepted.
    """
    title = f"claims file {path}"
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserErrors(title, [f"cannot be read: {error.strerror}"], "name one with --claims FILE") from error
    except (ValueError, RecursionError) as error:
        raise UserErrors(title, [f"not valid TOML in UTF-8: {error}"]) from error
    problems = [unknown("table or key", key, _TOP) for key in data if key not in _TOP]
    entries = data.get("claim", [])
    if not isinstance(entries, list) or not entries:
        problems.append("[[claim]] is missing: the file says nothing")
        entries = []
    claims: list[Claim] = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("id") if isinstance(entry, dict) else None
        place = f"claim {name!r}" if isinstance(name, str) else f"claim {number}"
        found = _claim(entry, place, problems)
        if found is None:
            continue
        if found.id in {claim.id for claim in claims}:
            problems.append(f"{place}: the id is taken by an earlier claim")
        claims.append(found)
    if problems:
        raise UserErrors(title, problems)
    return claims


def _claim(entry: object, place: str, problems: list[str]) -> Claim | None:
    try:
        claim = _CLAIM.validate_python(entry)
    except ValidationError as error:
        problems += dict.fromkeys(f"{place}: {_located(each)}" for each in error.errors(include_url=False))
        return None
    for number, check in enumerate(claim.check, 1):
        here = f"{place}, check {number}"
        if check.table not in TABLES:
            problems.append(f"{here}: {unknown('table', check.table, TABLES)}")
        if check.shown not in SHOWN:
            problems.append(f"{here}: {unknown('way to show', check.shown, SHOWN)}")
        if check.holds.problem:
            problems.append(f"{here}: holds: {check.holds.problem}")
        if check.over is not None and check.against is not None:
            problems.append(f"{here}: give over or against, not both")
        if check.against is not None and check.table not in ("global", "groups"):
            problems.append(f"{here}: against compares cells, so the table must be global or groups")
    return claim


def _located(error: Mapping[str, Any]) -> str:
    """One line about a value: where it stands and what is wrong."""
    # Conditions are unions: which alternative failed says nothing to a reader.
    place = [str(part) for part in error["loc"] if not str(part)[:1].isupper() and "[" not in str(part)]
    value = repr(error.get("input"))
    shown = "" if error["type"] == "missing" else f" (it is {value if len(value) <= 60 else value[:57] + '...'})"
    kind = "unknown key" if error["type"] in ("unexpected_keyword_argument", "extra_forbidden") else error["msg"]
    return f"{'.'.join(place) or 'it'}: {kind}{shown}"


def column_problems(claims: Sequence[Claim], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of columns that neither the tables nor their documentation know.

    Parameters
    ----------
    columns
        Columns of each table that the runs hold. A documented column that no run holds is not measured, not wrong.
    """
    documented = {name for key in COLUMN_MEANINGS for name in key.split(", ")} | {
        *schema.KEYS.names,
        *schema.CELL.names,
    }
    problems = []
    for claim in claims:
        for number, check in enumerate(claim.check, 1):
            legal = columns.get(check.table, ())
            problems += [
                f"claim {claim.id!r}, check {number}: {unknown(f'column of {check.table}', name, legal)}"
                for name in dict.fromkeys(check.columns())
                if name not in legal and name not in documented
            ]
    return problems

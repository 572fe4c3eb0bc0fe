"""Claims that somebody made, judged by the tables of runs: true, false, depends, or not measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aggregate.claims.file import read_claims
from aggregate.claims.verdict import Ruling, judge, load_tables
from sparsehpc.core.errors import UserErrors
from sparsehpc.core.layout import RunFolder

__all__ = ["Ruling", "judge", "judge_runs", "load_tables", "read_claims"]


def judge_runs(runs: Sequence[RunFolder], claims: Path) -> list[Ruling]:
    """Judge a claims file by the tables of runs.

    Raises
    ------
    UserErrors
        Every problem of the file, before any table is read; then every column that the tables do not know.
    """
    found = read_claims(claims)
    tables = load_tables(runs)
    try:
        return judge(found, tables)
    except UserErrors as error:
        raise UserErrors(f"claims file {claims}", error.problems) from error

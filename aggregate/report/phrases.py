"""A sentence of the headline, and how figures are written in it."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from aggregate.figures.data import Record, missing
from aggregate.figures.style import MIB, ends, number

#: Methods that get sentences of their own; all of them are in the table.
MOST_METHODS = 4


#: How names of formats end whose values are narrower than the model's dtype.
_NARROWER = ("-bf16", "-int8", "-q4")


class Fact(NamedTuple):
    """A computed sentence and the definition it rests on."""

    text: str
    definition: str


def listed(names: list[str]) -> str:
    """Write a list as in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def known(row: Record, *columns: str) -> bool:
    """Whether a row holds all these figures."""
    return all(column in row and not missing(row[column]) and row[column] != "" for column in columns)


def mib(size: float) -> str:
    """Bytes as MiB with one decimal."""
    return f"{size / MIB:,.1f} MiB"


def share(fraction: float) -> str:
    """Write a measured share: three significant digits, and never 100 % where some are missing."""
    if 0.9995 <= fraction < 1:
        return f"{math.floor(1e6 * fraction) / 1e4:.4f} %"
    return f"{number(100 * fraction, 3)} %"


def signed(change: float) -> str:
    """Write a relative change with its sign."""
    if change == 0:
        return "no change"
    sign = "+" if change > 0 else "\N{MINUS SIGN}"
    return f"{sign}{number(abs(100 * change), 3)} %"


def against(size: float, reference: float) -> str:
    """Say how a size compares: '31.4 % larger than', 'the size of'."""
    change = size / reference - 1
    if abs(change) < 5e-4:
        return "the size of"
    if change >= 1:
        return f"{number(size / reference, 3)} times as large as"
    return f"{number(abs(100 * change), 3)} % {'larger' if change > 0 else 'smaller'} than"


def interval(row: Record, metric: str, scale: float = 1.0, unit: str = "") -> str:
    """Write the 95 % interval of a figure, where the table has one."""
    low, high = f"{metric}_lo", f"{metric}_hi"
    if not known(row, low, high):
        return ""
    return f" {ends(scale * row[low], scale * row[high], unit)}"


def of_own_dtype(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of formats that keep the dtype of values: what narrower ones save is not saved by zeros. All, if none do."""
    own = rows[~rows["variant"].str.endswith(_NARROWER)]
    return rows if own.empty else own


def dense_twin(variant: str) -> str | None:
    """The dense reference with the same narrower values, or None."""
    ending = next((ending for ending in _NARROWER if variant.endswith(ending)), None)
    return None if ending is None else f"dense{ending}"

"""Patterns of zeros, by name: what they fix, and which matrices they fit. Needs no torch.

``N:M`` always means "keep N of M" consecutive weights of a row (along in_features); much of the published code
uses the same notation for the number *removed*.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from sparsehpc.core.errors import UserError, unknown

PatternKind = Literal["unstructured", "keep", "block", "structured"]

_KEEP = re.compile(r"([1-9]\d*):([1-9]\d*)")
_BLOCK = re.compile(r"block([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern of zeros.

    Parameters
    ----------
    name
        Name in study files.
    kind
        ``unstructured``; ``keep`` (keep `keep` of every `of` weights of a row); ``block`` (blocks of `rows` x
        `columns` stay or go as one); ``structured`` (whole heads, neurons or layers).
    summary
        One line for lists and documentation.
    keep, of
        Weights kept in each group, and the group's size; 0 unless `kind` is ``keep``.
    rows, columns
        Shape of a block; 1 x 1 unless `kind` is ``block``.
    """

    name: str
    kind: PatternKind
    summary: str
    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @property
    def fixed_sparsity(self) -> Decimal | None:
        """Sparsity that the pattern dictates, 1 - N/M for "keep N of M"; None where it is free."""
        return None if self.kind != "keep" else 1 - Decimal(self.keep) / Decimal(self.of)

    def unsupported(self, rows: int, columns: int) -> str | None:
        """Why a matrix of out_features x in_features cannot have this pattern, or None where it can."""
        if self.kind == "keep" and columns % self.of:
            return f"pattern {self.name} needs in_features divisible by {self.of}, the matrix is {rows} x {columns}"
        if self.kind == "block" and (rows % self.rows or columns % self.columns):
            return (
                f"pattern {self.name} needs a matrix that divides into {self.rows} x {self.columns} blocks, "
                f"it is {rows} x {columns}"
            )
        return None


def _keep(keep: int, of: int) -> Pattern:
    return Pattern(f"{keep}:{of}", "keep", f"keep {keep} of every {of} weights of a row", keep=keep, of=of)


def _block(rows: int, columns: int) -> Pattern:
    return Pattern(
        f"block{rows}x{columns}",
        "block",
        f"blocks of {rows} x {columns} weights stay or go as one",
        0,
        0,
        rows,
        columns,
    )


#: Every pattern, in the order tables show them.
PATTERNS: Final[dict[str, Pattern]] = {
    pattern.name: pattern
    for pattern in (
        Pattern("unstructured", "unstructured", "any weight may go"),
        _keep(2, 4),
        _keep(4, 8),
        _keep(1, 4),
        _block(8, 8),
        _block(16, 16),
        Pattern("heads", "structured", "whole attention heads go; key/value heads with the queries that share them"),
        Pattern("neurons", "structured", "whole channels between the MLP's matrices go"),
        Pattern("layers", "structured", "whole decoder layers go"),
    )
}


def parse_pattern(name: str) -> Pattern:
    """Pattern called ``name``; `UserError` with the legal names otherwise.

    >>> parse_pattern("1:4").fixed_sparsity
    Decimal('0.75')
    """
    if name in PATTERNS:
        return PATTERNS[name]
    hint = ""
    if found := _KEEP.fullmatch(name):
        keep, of = int(found[1]), int(found[2])
        hint = f"{name} would mean: keep {keep} of {of}" if keep < of else f"keep {keep} of {of} removes nothing"
    elif _BLOCK.fullmatch(name):
        hint = "blocks are square, of 8 or 16"
    raise UserError(unknown("pattern", name, PATTERNS), hint)


def removed_count(sparsity: Decimal | Fraction, total: int) -> int:
    """Number of weights that ``sparsity`` removes of ``total``: the floor of the exact product.

    >>> removed_count(Decimal("0.3"), 10), removed_count(Decimal("0.29"), 100), removed_count(Fraction(1, 3), 3)
    (3, 29, 1)
    """
    return math.floor(Fraction(sparsity) * total)

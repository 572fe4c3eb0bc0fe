"""Rows of a track as its windows are measured: windows stay apart, bins are added up."""

from __future__ import annotations

from collections.abc import Iterable

from sparsehpc.core.schema import Measurement

#: Reductions whose rows add up by their sums.
_ADDITIVE = ("sum", "ratio", "exp_ratio")


class Rows:
    """Measurements of one track.

    A bin of positions or margins is met in every window; only the sum over windows is kept, so that what a cell writes
    does not grow with bins times windows. A figure that does not add up keeps its rows.
    """

    def __init__(self) -> None:
        self._rows: list[Measurement] = []
        self._bins: dict[tuple[str, str, str], Measurement] = {}

    def extend(self, rows: Iterable[Measurement]) -> None:
        """Add the rows of one window."""
        for row in rows:
            if row.scope != "bin" or row.reduction not in _ADDITIVE:
                self._rows.append(row)
                continue
            key = (row.subject, row.metric, row.component)
            before = self._bins.get(key)
            if before is not None:
                bottom = 1.0 if row.reduction == "sum" else before.denominator + row.denominator
                row = row._replace(numerator=before.numerator + row.numerator, denominator=bottom)
            self._bins[key] = row

    def all(self) -> list[Measurement]:
        """Rows of windows in their order, then those of bins."""
        return [*self._rows, *self._bins.values()]

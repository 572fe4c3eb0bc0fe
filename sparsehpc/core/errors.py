"""Errors a person can act on: each names the thing, the legal values and the next command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SparseHPCError(Exception):
    """Base of every error this project raises on purpose."""


class UserError(SparseHPCError):
    """Input that cannot be served; shown without a traceback.

    Parameters
    ----------
    message
        What is wrong, naming the thing.
    hint
        What to do next: a command or a legal value.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        return (type(self), (self.message, self.hint))


class UserErrors(UserError):
    """Every error of one input, collected and shown at once."""

    def __init__(self, title: str, problems: Sequence[str], hint: str = "") -> None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{title}: {len(problems)} problem{'s' * (len(problems) != 1)}\n{lines}", hint)
        self.title = title
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[UserErrors], tuple[str, tuple[str, ...], str]]:  # type: ignore[override]
        return (type(self), (self.title, self.problems, self.hint))


class CellError(SparseHPCError):
    """One cell cannot be computed (for example NaN in a layer); the other cells of the job go on."""


def unknown(kind: str, name: object, legal: Iterable[str]) -> str:
    """Describe an unknown name: nearest names first, then all legal ones.

    >>> unknown("method", "magnitud", ["magnitude", "random"])
    "unknown method 'magnitud'; did you mean 'magnitude'? Legal: magnitude, random"
    """
    names = sorted(legal)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{guess} Legal: {', '.join(names) or 'none'}"

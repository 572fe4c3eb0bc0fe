"""Progress for people: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


#: Lines about steps, where there is no terminal, are at least so far apart.
_SAY_EVERY_S = 30.0


class Reporter:
    """Says how far a run is; a context manager.

    Parameters
    ----------
    total
        Cells of the plan.
    done
        Cells done before.
    quiet
        Say nothing at all.
    """

    def __init__(self, total: int, done: int, *, quiet: bool = False) -> None:
        self.total, self.done, self.quiet = total, done, quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = self._step = ""
        self._said = time.monotonic()

    def __enter__(self) -> Reporter:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("cells"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=self.total, completed=self.done)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """What is being done now; without a terminal only said when it is something new."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        elif not self.quiet and text != self._stage:
            self._say(text)
        self._stage = text

    def step(self, stage: str, done: int, total: int) -> None:
        """Progress inside a job; without a terminal a line now and then."""
        text = f"{stage} {done}/{total}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        elif not self.quiet and text != self._step and time.monotonic() - self._said > _SAY_EVERY_S:
            self._say(text)
            self._step = text

    def cell(self, label: str, state: str) -> None:
        """One more cell has ended."""
        self.done += state == "done"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done)
            if state != "done":
                self._bar.console.print(f"{state}: {label}", markup=False, highlight=False)
        elif not self.quiet:
            self._say(f"[{self.done}/{self.total}] {state}: {label}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

"""Compute cells on this machine: one process a job, one after another or a few side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jobs.cell import CellJob, CellsFailed
from jobs.inputs import Inputs
from jobs.progress import Reporter
from slurm.executor import make_executor
from slurm.task import MARK
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import shard_state, write_failure
from sparsehpc.core.spec import Cell

_POLL_S = 0.2
_END_S = 20.0
#: The last line that `jobs.cell.LoggedProgress` wrote.
_STEP = re.compile(r"^\d\d:\d\d:\d\d (.+) (\d+)/(\d+)\s*\Z", re.MULTILINE)


def run_in_process(run: RunFolder, inputs: Inputs, jobs: Sequence[Sequence[Cell]], reporter: Reporter) -> None:
    """Run jobs one after another inside this process (executor ``debug``)."""
    for cells in jobs:
        executor = make_executor("debug", submission_folder(run), inputs.resource(cells[0].resource))
        reporter.stage(_describe(cells))
        # Asking for the result would open a debugger; failures of cells are in their failure records.
        error = executor.submit(_job(run, cells), reporter.step).exception()
        _report(run, cells, set(), reporter)
        if error is not None and not isinstance(error, CellsFailed):
            raise error


def run_in_processes(
    run: RunFolder, inputs: Inputs, jobs: Sequence[Sequence[Cell]], reporter: Reporter, side_by_side: int = 1
) -> None:
    """Run jobs as processes of this machine (executor ``local``), at most ``side_by_side`` at a time.

    An interruption (Ctrl-C, SIGTERM) stops the processes and is passed on; finished cells stay.
    """
    waiting, running = list(reversed(jobs)), list[tuple[Any, Sequence[Cell], set[str]]]()
    with _terminable():
        try:
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    cells = waiting.pop()
                    reporter.stage(_describe(cells))
                    running.append((_start(run, inputs, cells), cells, set()))
                time.sleep(_POLL_S)
                for entry in list(running):
                    job, cells, reported = entry
                    ended = job.done()
                    if (step := _last_step(Path(job.paths.stdout))) is not None:
                        reporter.step(*step)
                    if ended:
                        _record_ended(run, job, cells)
                        running.remove(entry)
                        job._process.wait()
                    _report(run, cells, reported, reporter, ended=ended)
        except BaseException:
            for job, _, _ in running:
                job.cancel(check=False)
            _wait_for_end([job for job, _, _ in running])
            raise


def submission_folder(run: RunFolder) -> Path:
    """A fresh folder for one submission, named by the time."""
    now = datetime.datetime.now(datetime.UTC)
    return run.submissions / f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def _start(run: RunFolder, inputs: Inputs, cells: Sequence[Cell]) -> Any:
    resource = inputs.resource(cells[0].resource)
    # ``minutes`` is meant for one cell a job, as `submit` sends them; a job of many may take as many times longer.
    resource = dataclasses.replace(resource, minutes=resource.minutes * len(cells))
    executor = make_executor("local", submission_folder(run), resource)
    with _own_stderr(executor.folder / "controller.err"):
        return executor.submit(_job(run, cells))


@contextlib.contextmanager
def _own_stderr(path: Path) -> Iterator[None]:
    """Give processes that start in the block a file for what they say: an interrupted controller shows a traceback."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _job(run: RunFolder, cells: Sequence[Cell]) -> CellJob:
    return CellJob(str(run.root.absolute()), tuple(cell.cell_id for cell in cells))


def _report(
    run: RunFolder, cells: Sequence[Cell], reported: set[str], reporter: Reporter, *, ended: bool = True
) -> None:
    """Say which cells of a job have ended since the last time."""
    for cell in cells:
        folder = run.cell(cell.cell_id)
        if cell.cell_id in reported or not (ended or folder.row.exists() or folder.failure.exists()):
            continue
        found = shard_state(folder, cell.cell_id, verify=False)
        state = found.state if found.state == "done" else f"{found.state} {found.cause}".strip()
        if ended or found.state in ("done", "failed"):
            reported.add(cell.cell_id)
            reporter.cell(cell.label(), state)


def _record_ended(run: RunFolder, job: Any, cells: Sequence[Cell]) -> None:
    """Cells that a job left without shard and record: say so in a record, with what its process said last."""
    words = _last_lines(Path(job.paths.stderr))
    if Path(job.paths.result_pickle).exists():
        cause, message = "CODE", "the job ended with an error before it reached the cell"
    else:
        cause, message = "LOST", "the process was killed; the machine may have run out of memory"
    for cell in cells:
        folder = run.cell(cell.cell_id)
        if shard_state(folder, cell.cell_id, verify=False).state in ("missing", "damaged"):
            write_failure(folder, cause, f"{message}; its last words: {words or 'none'}", log=str(job.paths.stderr))


def _last_step(path: Path) -> tuple[str, int, int] | None:
    """Stage, steps done and steps in all, from the last line of a job's log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 200))
            found = _STEP.search(file.read().decode(errors="replace"))
    except OSError:
        return None
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def _last_lines(path: Path, lines: int = 5) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    said = [line for line in text.strip().splitlines() if not line.startswith(f"{MARK} ")]
    return "\n".join(said[-lines:])


def _wait_for_end(jobs: Sequence[Any]) -> None:
    until = time.monotonic() + _END_S
    for job in jobs:
        while not job.done() and time.monotonic() < until:
            time.sleep(_POLL_S)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, so that no process is left behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: nobody sends signals there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(cells: Sequence[Cell]) -> str:
    return f"{cells[0].model}, {cells[0].dtype}: {len(cells)} cell{'s' * (len(cells) != 1)}"

"""Cancel a run's jobs; remove what finished submissions leave behind; show what a cell's job said."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path

from jobs.fates import Fate, find_fates, queue_of
from jobs.plan_file import planned_ids
from slurm.causes import read_tail
from slurm.ledger import Submission
from slurm.limits import ask
from slurm.task import LEDGER
from slurm.track import track
from sparsehpc.core.layout import RunFolder


@dataclasses.dataclass(frozen=True, slots=True)
class Removable:
    """What `clean` would remove.

    Parameters
    ----------
    folders
        Submissions whose cells are all done.
    leftovers
        Temporary files of writers that were killed.
    files, size_bytes
        How much that frees.
    kept
        Submissions that stay.
    """

    folders: tuple[Path, ...]
    leftovers: tuple[Path, ...]
    files: int
    size_bytes: int
    kept: int

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of it."""
        return (*self.folders, *self.leftovers)


def cancellable(run: RunFolder) -> list[Submission]:
    """Submissions with a task that waits or runs, or of which nobody can say."""
    return track(run, queue_of(run), fresh=True).unfinished_jobs()


def cancel_jobs(run: RunFolder, jobs: Sequence[Submission]) -> dict[str, str]:
    """Cancel by name: it also reaches a job whose id was never learned. Returns why, for jobs that could not be."""
    queue_of(run).forget()
    problems = {}
    for job in jobs:
        if job.uid not in (-1, os.getuid()):
            problems[job.job_name] = f"{job.job_name} was submitted by {_user(job.uid)}, who alone can cancel it"
        elif ask(["scancel", f"--user={os.getuid()}", f"--name={job.job_name}"]) is None:
            problems[job.job_name] = f"scancel --name={job.job_name} failed; try again when the scheduler answers"
    return problems


def _user(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def removable(run: RunFolder) -> Removable:
    """Look for what is no longer needed; nothing is removed."""
    fates, tracker = find_fates(run, planned_ids(run.plan), fresh=True)
    busy = {item.submission_id for item in tracker.unfinished_jobs()}
    known = {item.submission_id: item for item in tracker.submissions}
    folders, kept = [], 0
    entries = [path for path in run.submissions.iterdir() if path.is_dir()] if run.submissions.is_dir() else []
    for path in sorted(entries):
        submission = known.get(path.name)
        cells = [cell_id for task in submission.tasks for cell_id in task] if submission is not None else []
        unfinished = any(fates[cell_id].state != "done" for cell_id in cells if cell_id in fates)
        # A ledger that cannot be read is somebody's to look at; a folder without one belongs to a run that has ended
        # once every cell is done.
        unreadable = submission is None and (path / LEDGER).exists()
        local = submission is None and any(fate.state != "done" for fate in fates.values())
        of_another = not os.access(path, os.W_OK | os.X_OK)
        if path.name in busy or unfinished or unreadable or local or of_another:
            kept += 1
        else:
            folders.append(path)
    leftovers = [] if busy else sorted(run.cells.glob("*/*/.*.tmp"))
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()] + leftovers
    size = sum(file.stat().st_size for file in files)
    return Removable(tuple(folders), tuple(leftovers), len(files), size, kept)


def remove(found: Removable) -> None:
    """Remove it."""
    for folder in found.folders:
        shutil.rmtree(folder, ignore_errors=True)
    for path in found.leftovers:
        path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Logs:
    """What there is to read about one cell.

    Parameters
    ----------
    fate
        Where it stands.
    message
        The failure record's whole message, where there is one.
    tail
        Last lines of its job's stderr, this attempt only.
    files
        Where the rest is.
    """

    fate: Fate
    message: str
    tail: str
    files: tuple[Path, ...]


def cell_logs(run: RunFolder, cell_id: str, lines: int) -> Logs:
    """Logs of one cell's last job; files first, the scheduler at its pace."""
    fates, _ = find_fates(run, [cell_id])
    fate = fates[cell_id]
    files: list[Path] = []
    tail = ""
    if fate.place is not None:
        files = [fate.place.log(run, "err"), fate.place.log(run, "out")]
        tail = read_tail(files[0], lines)
    failure = run.cell(cell_id).failure
    if failure.exists():
        files.append(failure)
    message = fate.reason if fate.state in ("failed", "damaged") else ""
    return Logs(fate, message, tail, tuple(path for path in files if path.exists()))

"""What was submitted: one folder a submission, one file that says what it was for, one that says what became of it.

``ledger.json`` is written (and renamed into place) after payload and script and before sbatch is called; ``job.json``
once the fate is known. A ledger without a fate means that the submitting process was stopped in between: the job's
unique name tells whether the scheduler has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from slurm.sbatch import job_name
from slurm.task import LEDGER
from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_text
from sparsehpc.core.layout import RunFolder, check_cell_id

Purpose = Literal["cells", "aggregate", "probe"]
#: ``accepted``: the scheduler has it; ``refused``: it never had it; ``open``: not known yet.
Fate = Literal["accepted", "refused", "open"]

JOB = "job.json"
_ID = re.compile(r"\d{8}T\d{6}\d{6}-[0-9a-f]{6}")
#: Fields of `Submission` that ``job.json`` holds.
_FATE = ("fate", "job_id", "words")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One array that was, or was about to be, submitted.

    Parameters
    ----------
    submission_id
        Time and random digits; name of its folder. Ids sort by time.
    job_name
        Unique name of the job: how it is found again.
    purpose
        ``cells``, ``aggregate`` or ``probe``.
    resources
        Fields of `slurm.resources.Resources`.
    profile
        Name of the profile.
    tasks
        Cell ids of each array task.
    created_at
        UTC, ISO 8601.
    code_digest
        Digest of the project's sources on the submitting side.
    uid
        Number of the user who submitted it: members of a group may share a run. -1: not known.
    fate
        What became of it.
    job_id
        The scheduler's id where it was accepted.
    words
        What sbatch said where it was refused.
    """

    submission_id: str
    job_name: str
    purpose: Purpose = "cells"
    resources: dict[str, Any] = dataclasses.field(default_factory=dict)
    profile: str = ""
    tasks: tuple[tuple[str, ...], ...] = ()
    created_at: str = ""
    code_digest: str = ""
    uid: int = -1
    fate: Fate = "open"
    job_id: str = ""
    words: str = ""

    def folder(self, run: RunFolder) -> Path:
        """Where it lies."""
        return run.submissions / self.submission_id

    @property
    def made(self) -> datetime.datetime:
        """When it was created."""
        return datetime.datetime.fromisoformat(self.created_at)


def new_submission(run_name: str, **fields: Any) -> Submission:
    """Name a submission; nothing is written."""
    now = datetime.datetime.now(datetime.UTC)
    submission_id = f"{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}"
    return Submission(
        submission_id=submission_id,
        job_name=f"{job_name(run_name)[:32]}-{submission_id}",
        created_at=now.isoformat(timespec="seconds"),
        uid=os.getuid(),
        **fields,
    )


def record(run: RunFolder, submission: Submission) -> None:
    """Write the ledger entry: from now on the submission exists."""
    values = {key: value for key, value in dataclasses.asdict(submission).items() if key not in _FATE}
    write_text(submission.folder(run) / LEDGER, json.dumps(values) + "\n")


def record_fate(run: RunFolder, submission: Submission, fate: Fate, *, job_id: str = "", words: str = "") -> Submission:
    """Write what became of it."""
    text = json.dumps({"fate": fate, "job_id": job_id, "words": words}, indent=1) + "\n"
    write_text(submission.folder(run) / JOB, text)
    return dataclasses.replace(submission, fate=fate, job_id=job_id, words=words)


def read_ledger(run: RunFolder) -> tuple[list[Submission], list[str]]:
    """All submissions, oldest first, and a line for every one that cannot be read."""
    found: list[Submission] = []
    problems: list[str] = []
    try:
        with os.scandir(run.submissions) as entries:
            names = sorted(entry.name for entry in entries if _ID.fullmatch(entry.name))
    except FileNotFoundError:
        return found, problems
    for name in names:
        folder = run.submissions / name
        if not (folder / LEDGER).exists():
            continue  # stopped before it was complete: it was never submitted
        try:
            found.append(_read(folder))
        except (OSError, ValueError, TypeError, KeyError, UserError) as error:
            problems.append(f"{folder / LEDGER} cannot be read: {error}")
    return found, problems


def _read(folder: Path) -> Submission:
    values = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
    values["tasks"] = tuple(tuple(check_cell_id(cell) for cell in task) for task in values["tasks"])
    submission = Submission(**values)
    if submission.submission_id != folder.name or job_name(submission.job_name) != submission.job_name:
        raise ValueError("it names another submission")
    if type(submission.uid) is not int:
        raise ValueError(f"uid is {submission.uid!r}")
    submission.made  # noqa: B018 - a time that cannot be read is found here
    with contextlib.suppress(FileNotFoundError):
        fate = json.loads((folder / JOB).read_text(encoding="utf-8"))
        if not re.fullmatch(r"\d*", fate["job_id"]) or fate["fate"] not in ("accepted", "refused", "open"):
            raise ValueError(f"job.json says {fate!r}")
        submission = dataclasses.replace(submission, **{key: fate[key] for key in _FATE})
    return submission


def job_id_from_logs(folder: Path) -> str | None:
    """Job id that the files of a submission tell: its tasks name their logs by it."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if found := re.match(r"(\d+)_\d+_\d+_log\.(?:out|err)", entry.name):
                return found.group(1)
    return None


def latest(submissions: Sequence[Submission]) -> dict[str, tuple[Submission, int]]:
    """For every cell the latest submission that was not refused, and the task that holds it."""
    found: dict[str, tuple[Submission, int]] = {}
    for submission in submissions:
        if submission.purpose == "cells" and submission.fate != "refused":
            for number, task in enumerate(submission.tasks):
                for cell_id in task:
                    found[cell_id] = (submission, number)
    return found

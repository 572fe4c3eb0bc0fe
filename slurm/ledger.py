"""What was submitted: one file a submission, written before sbatch is called and renamed into place.

Re-running ``submit`` reads all of them and the scheduler's own list: together they say which cells wait or run.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.files import write_text
from sparsehpc.core.layout import RunFolder, check_cell_id

LEDGER = "ledger.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One array of jobs.

    Parameters
    ----------
    folder
        Its folder under ``submissions/``.
    name
        Job name, unlike any other submission's, so that the scheduler can be asked for it.
    resource
        Name of the resource class.
    tasks
        Cell ids of each array task.
    made_at
        UTC, ISO 8601.
    job_id
        The scheduler's id; None where sbatch was not called yet, or did not answer.
    """

    folder: Path
    name: str
    resource: str
    tasks: tuple[tuple[str, ...], ...]
    made_at: str
    job_id: str | None = None

    def write(self) -> None:
        """Write or replace ``ledger.json``."""
        values: dict[str, Any] = {"version": _VERSION, **dataclasses.asdict(self)}
        del values["folder"]
        write_text(self.folder / LEDGER, json.dumps(values, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Submission:
        """Read what `write` wrote; a file that is not ours is an error."""
        path = folder / LEDGER
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("version") != _VERSION:
                raise ValueError("another version")
            tasks = tuple(tuple(check_cell_id(cell_id) for cell_id in task) for task in values.pop("tasks"))
            return cls(folder=folder, tasks=tasks, **values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SparseHPCError(f"{path} cannot be read: {error}") from error


def submissions(run: RunFolder) -> list[Submission]:
    """Every submission of a run that has a ledger, oldest first."""
    folders = sorted(path.parent for path in run.submissions.glob(f"*/{LEDGER}"))
    return sorted((Submission.read(folder) for folder in folders), key=lambda found: found.made_at)

"""What waits or runs, in one question to the scheduler."""

from __future__ import annotations

from collections.abc import Iterable

from slurm.ledger import Submission
from slurm.limits import ask
from sparsehpc.core.errors import SparseHPCError

#: Array job id, index in the array, job name: one line a task.
_FORMAT = "%F %K %j"


def live_tasks(timeout_s: float = 20.0) -> list[tuple[str, int, str]]:
    """Job id, index and job name of every array task of this user that waits or runs.

    Raises
    ------
    SparseHPCError
        The scheduler does not answer.
    """
    answer = ask(["squeue", "--me", "--noheader", "--array", "--format", _FORMAT], timeout_s)
    if answer is None:
        raise SparseHPCError("squeue does not answer")
    found = []
    for line in answer.splitlines():
        job_id, index, name = line.strip().split(maxsplit=2)
        if index.isdecimal():
            found.append((job_id, int(index), name))
    return found


def cells_in_queue(submissions: Iterable[Submission], live: Iterable[tuple[str, int, str]]) -> set[str]:
    """Cells of tasks that wait or run.

    A submission whose job id is unknown (the process died, or sbatch did not answer) is found by its name.
    """
    tasks = list(live)
    by_id = {(job_id, index) for job_id, index, _ in tasks}
    by_name = {(name, index) for _, index, name in tasks}
    return {
        cell_id
        for submission in submissions
        for index, cells in enumerate(submission.tasks)
        if (submission.job_id, index) in by_id or (submission.name, index) in by_name
        for cell_id in cells
    }

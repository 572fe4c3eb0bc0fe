"""What a job runs, on a node or as a process of this machine: ``python -m slurm.task FOLDER``.

It reads the one payload that the submission wrote, after checking that nobody else could have written it, and runs
the task's callable under submitit's signal handling. A restarted task starts from the payload again: products on disk
are the state, no pickle that a job wrote is ever read back.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from slurm.node import node_local_folders
from slurm.own import open_file
from sparsehpc.core.files import write_text
from sparsehpc.core.provenance import code_digest

PAYLOAD = "payload.pkl"
#: Begins the line that every attempt writes to stderr first.
MARK = "sparsehpc task"
#: Written beside the ledger by tasks that found other code than was submitted.
CHANGED = "code_changed.json"
LEDGER = "ledger.json"


class OutOfTime(BaseException):
    """The job has timed out so often that submitit gives it up; no ``except Exception`` may swallow this."""


def read_payload(folder: Path) -> list[Any]:
    """Unpickle a submission's payload; `SparseHPCError` where it is not this user's own (see `slurm.own`)."""
    with open_file(folder / PAYLOAD) as file:
        calls: list[Any] = pickle.load(file)  # noqa: S301 - written by this user: open_file has checked it
    return calls


def run(folder: Path) -> None:
    """Run this array task's callable and leave its result beside the logs, as submitit does."""
    from submitit.core import job_environment, utils

    os.environ["SUBMITIT_FOLDER"] = str(folder)
    environment = job_environment.JobEnvironment()
    paths = environment.paths
    call = read_payload(folder)[int(environment.array_task_id or 0)]
    restarts = _restarts(Path(paths.stderr))
    # Every restart uses up one of the time-outs submitit grants; a preempted task is requeued all the same.
    call.set_timeout(call._timeout_min, max(0, call._timeout_countdown - restarts))
    for leftover in folder.glob(f"{environment.job_id}_*.save_tmp"):
        leftover.unlink(missing_ok=True)  # of an attempt killed while it wrote; submitit would stop at it
    # Logs of restarts follow each other in one file; the last mark is where this attempt begins.
    sys.stderr.write(f"{MARK} {environment.job_id} on {environment.hostname}, restart {restarts}\n")
    _note_changed_code(folder)
    _note_cores()
    environment._handle_signals(paths, call)
    _end_when_out_of_time(environment._usr_sig())
    try:
        outcome = ("success", call.result())
    except (Exception, OutOfTime):
        with utils.temporary_save_path(paths.result_pickle) as temporary:
            utils.cloudpickle_dump(("error", traceback.format_exc()), temporary)
        raise
    with utils.temporary_save_path(paths.result_pickle) as temporary:
        utils.cloudpickle_dump(outcome, temporary)


def _on_a_node() -> bool:
    """Whether Slurm started this: also a job of this machine can run inside an allocation."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _restarts(log: Path) -> int:
    """How often this task was started before: Slurm says it; a job of this machine has left its marks in the log."""
    if _on_a_node():
        return int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    with contextlib.suppress(OSError):
        return sum(line.startswith(f"{MARK} ") for line in log.read_text(errors="replace").splitlines())
    return 0


def _end_when_out_of_time(number: int) -> None:
    """Let the end of the last time-out through whatever the callable catches: it is no failure of one of its cells."""
    handle = signal.getsignal(number)

    def end(received: int, frame: FrameType | None) -> None:
        from submitit.core.utils import UncompletedJobError

        try:
            if callable(handle):
                handle(received, frame)
        except UncompletedJobError as error:
            raise OutOfTime(str(error)) from error

    signal.signal(number, end)


def _note_changed_code(folder: Path) -> None:
    """Say and record where the project's code is not what it was at submission; the cells' rows name it, too."""
    try:
        submitted = str(json.loads((folder / LEDGER).read_text(encoding="utf-8"))["code_digest"])
    except (OSError, ValueError, KeyError):
        return  # an executor used by hand keeps no ledger
    if submitted and submitted != code_digest():
        sys.stderr.write("warning: the project's code was changed after this job was submitted\n")
        write_text(folder / CHANGED, json.dumps({"submitted": submitted, "started": code_digest()}) + "\n")


def _note_cores() -> None:
    """Say where the job may use fewer cores than it asked for: it would run, slower than paid for."""
    asked, usable = os.environ.get("SLURM_CPUS_PER_TASK", ""), len(os.sched_getaffinity(0))
    if _on_a_node() and asked.isdigit() and usable < int(asked):
        sys.stderr.write(
            f"warning: {asked} cores were asked for and {usable} may be used; set srun_args in the profile "
            "(sparsehpc doctor --profile checks it)\n"
        )


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m slurm.task SUBMISSION_FOLDER (inside a job)")
    # On one's own machine compiler caches stay where they are from job to job.
    with node_local_folders() if _on_a_node() else contextlib.nullcontext():
        run(Path(sys.argv[1]))


if __name__ == "__main__":
    main()

"""Why a task ended without its product: OOM, TIME, NODE, CODE, CANCELLED or LOST, with the evidence in words."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

from slurm.answers import TaskState
from slurm.task import MARK

Cause = Literal["OOM", "TIME", "NODE", "CODE", "CANCELLED", "LOST"]

#: Bytes of a log's end that are read.
_TAIL_BYTES = 16384
_OOM = re.compile(
    r"oom[-_ ]?kill|out[ -]of[ -]memory|exceeded (?:\w+ )?memory limit|memory limit.*being killed|\bMemoryError\b"
    r"|std::bad_alloc|cannot allocate memory|can't allocate memory",
    re.IGNORECASE,
)
_TIME = re.compile(r"DUE TO TIME LIMIT|timed-out (?:too many times|and not checkpointable)")
_NODE = re.compile(
    r"DUE TO NODE FAILURE|No space left on device|Read-only file system|Stale file handle|Input/output error"
)
_PREEMPTED = re.compile(r"DUE TO PREEMPTION")
_CANCELLED = re.compile(r"CANCELLED AT (?!.*DUE TO)")
_SIGNALLED = re.compile(r"srun: error: .*: (Killed|Terminated)")
#: Sampling sees a little less than what made the limit strike.
_NEAR_LIMIT = 0.9
_KILLED = (9, 137)
_TERMINATED = (15, 143)


class Verdict(NamedTuple):
    """A cause and the evidence for it."""

    cause: Cause
    evidence: str


def classify(state: TaskState | None, log: str, memory_bytes: int) -> Verdict:
    """Judge a task that ended without its product.

    Parameters
    ----------
    state
        The scheduler's word; None where it knows nothing of the task.
    log
        End of the task's stderr.
    memory_bytes
        Memory it had asked for.

    Returns
    -------
    Verdict
        Scheduler first, then what stderr says, then figures: some clusters report a memory kill only as exit 137.
    """
    word = state.state if state is not None else ""
    by_word: dict[str, Verdict] = {
        "OUT_OF_MEMORY": Verdict("OOM", "the scheduler says OUT_OF_MEMORY"),
        "TIMEOUT": Verdict("TIME", "the scheduler says TIMEOUT"),
        "DEADLINE": Verdict("TIME", "the scheduler says DEADLINE"),
        "NODE_FAIL": Verdict("NODE", "the scheduler says NODE_FAIL"),
        "BOOT_FAIL": Verdict("NODE", "the scheduler says BOOT_FAIL"),
        "PREEMPTED": Verdict("LOST", "preempted and not started again"),
    }
    if word in by_word:
        return by_word[word]
    for cause, pattern in (("OOM", _OOM), ("TIME", _TIME), ("NODE", _NODE), ("LOST", _PREEMPTED)):
        if found := pattern.search(log):
            return Verdict(cause, f"stderr says {_line_with(log, found.start())!r}")  # type: ignore[arg-type]
    said = _SIGNALLED.search(log)  # all that is known where accounting is down
    killed = (state is not None and (state.exit_code in _KILLED or state.signal == 9)) or bool(
        said and said[1] == "Killed"
    )
    if state is not None and killed and memory_bytes and state.peak_bytes >= _NEAR_LIMIT * memory_bytes:
        used = f"{state.peak_bytes / (1 << 20):.0f} of {memory_bytes / (1 << 20):.0f} MiB"
        return Verdict("OOM", f"killed while it used {used}")
    if word == "CANCELLED" or _CANCELLED.search(log):
        return Verdict("CANCELLED", "cancelled by a person or an administrator")
    if (said and said[1] == "Terminated") or (
        state is not None and (state.exit_code in _TERMINATED or state.signal == 15)
    ):
        return Verdict("LOST", "ended by signal 15; neither the scheduler nor stderr says why")
    if killed:
        return Verdict("LOST", "killed by signal 9; neither the scheduler nor stderr says why")
    if state is None:
        return Verdict("LOST", "the scheduler does not know it and no product is there")
    if not log.strip() and word != "COMPLETED":
        # Whatever starts says something first; only a log that cannot be written is empty.
        return Verdict("NODE", f"exit status {state.exit_code} and an empty log: can the disk be written?")
    if word == "COMPLETED":
        return Verdict("LOST", "it ended well but its product is not there")
    return Verdict("CODE", f"exit status {state.exit_code}" + (f", signal {state.signal}" if state.signal else ""))


def read_tail(path: Path, lines: int | None = None) -> str:
    """End of a log, the last attempt's only; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # From here on it is one attempt: an earlier one's words would speak for it.
    begin = text.rfind(f"{MARK} ")
    text = text[begin if begin >= 0 else 0 :]
    return text if lines is None else "\n".join(text.strip().splitlines()[-lines:])


def task_log(folder: Path, job_id: str, task: int, stream: Literal["out", "err"] = "err") -> Path:
    """Log of an array task."""
    return folder / f"{job_id}_{task}_0_log.{stream}"


def _line_with(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return text[start : end if end >= 0 else None].strip()[:200]

import pytest

from slurm.answers import TaskState
from slurm.causes import classify, read_tail, task_log

GIB = 1 << 30


def state(word, **fields):
    return TaskState("7", 0, word, **fields)


@pytest.mark.parametrize(
    ("found", "log", "cause"),
    [
        (state("OUT_OF_MEMORY"), "", "OOM"),
        (state("TIMEOUT"), "", "TIME"),
        (state("DEADLINE"), "", "TIME"),
        (state("NODE_FAIL"), "", "NODE"),
        (state("CANCELLED"), "", "CANCELLED"),
        (state("PREEMPTED"), "", "LOST"),
        (state("FAILED", exit_code=1), "ValueError: x", "CODE"),
        (state("FAILED", exit_code=1), "No space left on device", "NODE"),
        (state("FAILED", exit_code=9, signal=9), "", "LOST"),
        (state("FAILED", exit_code=137), "", "LOST"),
        (state("FAILED", exit_code=137, peak_bytes=int(0.95 * GIB)), "", "OOM"),
        (state("FAILED", exit_code=137, peak_bytes=int(0.5 * GIB)), "", "LOST"),
        (state("FAILED", exit_code=9), "error: StepId=5.0 exceeded memory limit (474370048 > 214958080)", "OOM"),
        (state("FAILED", exit_code=1), "Detected 1 oom_kill event in StepId=1.0", "OOM"),
        (state("FAILED", exit_code=1), "torch.OutOfMemoryError: CUDA out of memory.", "OOM"),
        (
            state("FAILED", exit_code=1),
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory",
            "OOM",
        ),
        (state("FAILED", exit_code=15), "srun: error: c1: task 0: Terminated", "LOST"),
        (state("FAILED", exit_code=143), "", "LOST"),
        (state("FAILED"), "srun: error: c1: task 0: Killed\nsrun: Force Terminated StepId=2.0", "LOST"),
        (state("FAILED"), "srun: error: c1: task 0: Exited with exit code 1", "CODE"),
        (state("FAILED", exit_code=1), "", "NODE"),
        (state("COMPLETED"), "", "LOST"),
        (state("CANCELLED"), "*** JOB 7 ON c1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", "TIME"),
        (None, "", "LOST"),
        (None, "*** STEP 7.0 ON c1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", "TIME"),
        (None, "*** STEP 7.0 ON c1 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE, SEE LOG ***", "NODE"),
        (None, "*** JOB 7 ON c1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", "LOST"),
        (None, "*** JOB 7 ON c1 CANCELLED AT 2026-01-01T00:00:00 ***", "CANCELLED"),
        (None, "UncompletedJobError: Job not requeued because: timed-out too many times.", "TIME"),
    ],
)
def test_scheduler_first_then_stderr_then_figures(found, log, cause):
    verdict = classify(found, log, GIB)
    assert verdict.cause == cause
    assert verdict.evidence


def test_only_the_last_attempt_speaks(tmp_path):
    log = task_log(tmp_path, "7", 3)
    log.write_text("sparsehpc task 7_3 on a, restart 0\nDUE TO TIME LIMIT\nsparsehpc task 7_3 on b, restart 1\nhello\n")
    assert read_tail(log, 5) == "sparsehpc task 7_3 on b, restart 1\nhello"
    assert classify(None, read_tail(log), GIB).cause == "LOST"


def test_a_missing_log_is_empty(tmp_path):
    assert read_tail(tmp_path / "none") == ""


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 5_000_000 + b"\nend\n")
    assert read_tail(log, 1) == "end"
    assert len(read_tail(log)) < 20_000

"""status --watch, clean and cancel: they look again, say what they would do, ask, and do nothing unless told so."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.plan_file import planned_ids
from slurm import ledger
from sparsehpc.core.layout import RunFolder


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What squeue answers; sacct knows nothing."""
    from slurm.answers import parse_squeue

    answers = {"squeue": ""}
    monkeypatch.setattr("slurm.queue.Queue._squeue", lambda *words: parse_squeue(answers["squeue"]))
    monkeypatch.setattr("slurm.queue.Queue._sacct", lambda *words: {})
    return answers


def submission(run: RunFolder, *tasks: tuple[str, ...], job_id: str = "1") -> ledger.Submission:
    made = ledger.new_submission("run", tasks=tasks, resources={"name": "small", "memory_gib": 1.0})
    made.folder(run).mkdir(parents=True)
    ledger.record(run, made)
    (made.folder(run) / f"{job_id}_0_0_log.err").write_text("x" * 3000)
    return ledger.record_fate(run, made, "accepted", job_id=job_id)


def test_watch_looks_every_minute_until_nothing_waits_or_runs(
    run_copy: Path, queue: dict[str, str], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(run_copy)
    [first, *_] = planned_ids(run.plan)
    row = run.cell(first).row
    kept = row.read_bytes()
    row.unlink()
    made = submission(run, (first,))
    slept: list[float] = []

    def turn(seconds: float) -> None:
        """What happens in the cluster while nobody looks."""
        slept.append(seconds)
        (run.submissions / "queue.json").unlink(missing_ok=True)
        state = {1: "RUNNING", 2: ""}[len(slept)]
        queue["squeue"] = f"1|0|{made.job_name}|{state}|None|c1\n" if state else ""
        if not state:
            row.write_bytes(kept)

    queue["squeue"] = f"1|0|{made.job_name}|PENDING|Priority|\n"
    monkeypatch.setattr("jobs.cli.status.time.sleep", turn)
    answer = cli("status", run_copy, "--watch")
    assert answer.code == 0, answer.err
    assert slept == [60, 60]
    looks = [line.split() for line in answer.out.splitlines() if line.startswith("all ")]
    # planned, done, running, queued, failed, damaged, missing
    assert [look[1:5] for look in looks] == [
        ["3", "2", "0", "1"], ["3", "2", "1", "0"], ["3", "3", "0", "0"],
    ]  # fmt: skip
    assert answer.out.splitlines()[-1].startswith("next: ")


def test_watch_ends_at_ctrl_c(
    run_copy: Path, queue: dict[str, str], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(run_copy)
    [first, *_] = planned_ids(run.plan)
    run.cell(first).row.unlink()
    queue["squeue"] = f"1|0|{submission(run, (first,)).job_name}|PENDING|Priority|\n"

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.cli.status.time.sleep", interrupt)
    answer = cli("status", run_copy, "--watch")
    assert (answer.code, answer.out.count("next: "), "Traceback" in answer.err) == (130, 1, False)


def test_clean_says_what_it_frees_and_asks(
    run_copy: Path, queue: dict[str, str], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(run_copy)
    shutil.rmtree(run.submissions)  # jobs of this machine, which made the run
    done, failed, *_ = planned_ids(run.plan)
    run.cell(failed).row.unlink()
    whole, broken = submission(run, (done,)), submission(run, (failed,), job_id="2")
    whole.folder(run).joinpath("big").write_bytes(bytes(3 << 20))
    files = [path for path in whole.folder(run).rglob("*") if path.is_file()]
    mib = sum(path.stat().st_size for path in files) / 2**20
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    refused = cli("clean", run_copy)
    assert "remove?" in refused.err
    assert whole.folder(run).is_dir()
    assert f"{len(files)} files, {mib:.1f} MiB, of 1 submissions; 1 submissions are kept" in refused.out
    found = json.loads(cli("clean", run_copy, "--yes", "--json").out)
    assert (found["removed"], found["kept"]) == (True, 1)
    assert found["bytes"] >= 3 << 20
    assert (whole.folder(run).exists(), broken.folder(run).exists()) == (False, True)
    again = cli("clean", run_copy)
    assert ("0 files, 0.0 MiB" in again.out, "remove?" in again.err) == (True, False)


def test_cancel_asks(
    run_copy: Path, queue: dict[str, str], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = RunFolder(run_copy), list[list[str]]()
    monkeypatch.setattr("jobs.manage.ask", lambda words: asked.append(list(words)) or "")
    [first, *_] = planned_ids(run.plan)
    run.cell(first).row.unlink()
    made = submission(run, (first,))
    queue["squeue"] = f"1|0|{made.job_name}|RUNNING|None|c1\n"
    for reply, code, calls in (("n\n", 1, 0), ("", 1, 0), ("y\n", 0, 1)):
        monkeypatch.setattr("sys.stdin", io.StringIO(reply))
        answer = cli("cancel", run_copy)
        assert "cancel 1 jobs?" in answer.err
        assert (answer.code, len(asked)) == (code, calls)
    assert asked[0][0] == "scancel"


def test_report_opens_the_page_only_where_it_is_asked_to(
    run_copy: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", lambda address: opened.append(address))
    assert cli("report", run_copy).code == 0
    assert opened == []
    assert cli("report", run_copy, "--open").code == 0
    assert opened == [(run_copy / "report" / "index.html").resolve().as_uri()]

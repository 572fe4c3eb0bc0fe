"""Progress without a terminal: plain lines, and few of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.local import _last_step
from jobs.progress import Reporter


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("jobs.progress.time.monotonic", lambda: now)
    with Reporter(3, 1) as reporter:
        reporter.stage("model m: 2 cells")
        reporter.step("layers", 1, 30)
        now += 31
        reporter.step("layers", 1, 30)
        now += 31
        reporter.step("layers", 1, 30)
        reporter.step("layers", 2, 30)
        reporter.cell("m csr", "done")
        reporter.cell("m nm", "failed OOM")
        reporter.stage("model m: 2 cells")
    assert capsys.readouterr().err.splitlines() == [
        "model m: 2 cells",
        "layers 1/30",
        "layers 2/30",
        "[2/3] done: m csr",
        "[2/3] failed OOM: m nm",
    ]


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(1, 0, quiet=True) as reporter:
        reporter.stage("x")
        reporter.cell("m", "done")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert _last_step(log) is None
    log.write_text("loading\n09:10:29 survey 0/1\n09:10:31 layers 7/30\n")
    assert _last_step(log) == ("layers", 7, 30)
    log.write_text("09:10:31 layers 7/30\nsomething else\n")
    assert _last_step(log) is None

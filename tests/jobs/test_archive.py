from __future__ import annotations

import getpass
import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_an_archive_holds_results_and_nothing_that_names_anyone(run_copy: Path, cli: Callable[..., Any]) -> None:
    out = run_copy.parent / "kept.tar.gz"
    answer = cli("archive", run_copy, "--out", out)
    assert answer.code == 0, answer.err
    with tarfile.open(out) as tar:
        members = tar.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {"study.toml", "plan.parquet", "tables/global.csv", "report/index.html"} <= names
    assert not [name for name in names if name.startswith(("cells", "submissions", "logs", "inputs"))]
    assert {(member.uid, member.uname, member.mtime) for member in members} == {(0, "", 0)}
    data = gzip.decompress(out.read_bytes())
    for secret in (str(Path.home()), str(run_copy.parent), f"/{getpass.getuser()}/"):
        assert secret.encode() not in data, secret


def test_a_run_without_tables_is_not_archived(run_copy: Path, cli: Callable[..., Any]) -> None:
    (run_copy / "tables" / "coverage.parquet").unlink()
    answer = cli("archive", run_copy)
    assert answer.code == 2
    assert f"sparsehpc aggregate {run_copy}" in answer.err

from __future__ import annotations

import getpass
import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


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


def test_home_folders_that_a_study_names_are_left_out(run_copy: Path, cli: Callable[..., Any]) -> None:
    """In text and in tables, whose pages are compressed; what names none is kept to the byte."""
    home = "/home/ada/models/opt"
    for name in ("study.toml", "provenance.json", "tables/global.csv"):
        path = run_copy / name
        path.write_text(path.read_text().replace("random:model", home))
    plan, coverage = run_copy / "plan.parquet", run_copy / "tables" / "coverage.parquet"
    table = pq.read_table(plan)
    for name in ("model", "spec"):
        values = [value.replace("random:model", home) for value in table[name].to_pylist()]
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values))
    pq.write_table(table, plan)
    out = run_copy.parent / "scrubbed.tar.gz"
    assert cli("archive", run_copy, "--out", out).code == 0
    with tarfile.open(out) as tar:
        found = {member.name.partition("/")[2]: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    kept = pq.read_table(pa.BufferReader(found["plan.parquet"]))
    assert set(kept["model"].to_pylist()) == {"~/models/opt"}
    assert kept.schema.equals(table.schema, check_metadata=True)
    assert kept["cell_id"] == table["cell_id"]
    assert not any("ada" in spec for spec in kept["spec"].to_pylist())
    for name in ("study.toml", "provenance.json", "tables/global.csv"):
        assert b"~/models/opt" in found[name]
        assert b"ada/" not in found[name]
    assert found["tables/coverage.parquet"] == coverage.read_bytes()


def test_a_run_without_tables_is_not_archived(run_copy: Path, cli: Callable[..., Any]) -> None:
    (run_copy / "tables" / "coverage.parquet").unlink()
    answer = cli("archive", run_copy)
    assert answer.code == 2
    assert f"sparsehpc aggregate {run_copy}" in answer.err

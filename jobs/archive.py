"""``sparsehpc archive``: what a run found, small enough to keep or to send: plan, tables, figures, report."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aggregate.private import scrub, scrub_table
from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_atomically
from sparsehpc.core.layout import RunFolder


def archive_run(run: RunFolder, out: Path) -> list[str]:
    """Write a compressed tar file; returns the names in it.

    No weights, shards or logs go in (``inputs.json`` and ``submissions`` stay out). Home folders that a study names are
    replaced by ``~``, owners are left out, and times are not kept.
    """
    if not (run.tables / "coverage.parquet").is_file():
        raise UserError(f"{run.root} has no tables yet", f"sparsehpc aggregate {run.root}")
    parts = [run.study, run.plan, run.extensions, run.provenance, run.tables, run.figures, run.report]
    files = [
        file
        for part in parts
        for file in (sorted(part.rglob("*")) if part.is_dir() else [part])
        if file.is_file() and not file.is_symlink()
    ]
    root = run.root.absolute()
    names = [str(file.absolute().relative_to(root)) for file in files]

    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w:gz") as tar:
            for file, name in zip(files, names, strict=True):
                data = _public(file)
                member = tarfile.TarInfo(f"{root.name}/{name}")  # owned by nobody, of no time, mode 644
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    try:
        write_atomically(out, write)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}", "choose another place with --out") from error
    return names


def _public(file: Path) -> bytes:
    """Content of a file without home folders; figures and report never hold any."""
    data = file.read_bytes()
    if file.suffix in (".toml", ".json", ".csv"):
        return scrub(data.decode()).encode()
    return _public_table(data) if file.suffix == ".parquet" else data


def _public_table(data: bytes) -> bytes:
    """The same table; rewritten only where something in it names a home folder."""
    table = pq.read_table(pa.BufferReader(data))
    clean = scrub_table(table)
    if clean is table:
        return data
    sink = io.BytesIO()
    pq.write_table(clean, sink)
    return sink.getvalue()

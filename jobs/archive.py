"""``sparsehpc archive``: what a run found, small enough to keep or to send: plan, tables, figures, report."""

from __future__ import annotations

import tarfile
from pathlib import Path

from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_atomically
from sparsehpc.core.layout import RunFolder


def archive_run(run: RunFolder, out: Path) -> list[str]:
    """Write a compressed tar file; returns the names in it.

    No weights, shards, logs or paths of this machine go in (``inputs.json`` and ``submissions`` stay out), owners are
    left out, and times are not kept.
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
                tar.add(file, f"{root.name}/{name}", recursive=False, filter=_anonymous)

    try:
        write_atomically(out, write)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}", "choose another place with --out") from error
    return names


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    info.mode = 0o644
    return info

"""Make a run folder, or open one again: ours, writable and of the same study, or a clear refusal.

Files are written in the order study, plan, tokens, provenance; a folder that was interrupted half made is completed.
"""

from __future__ import annotations

import json
import tomllib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.plan_file import planned_ids, write_plan
from jobs.spec import Study
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.files import write_text
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell

#: Everything that a run folder holds; a folder with other entries and no plan is someone else's.
ENTRIES = frozenset(
    {"study.toml", "plan.parquet", "provenance.json", "inputs.json", "extensions.json", "tokens", "cells"}
    | {"submissions", "checkpoints", "logs", "tables", "figures", "report"}
)
_OTHER_FOLDER = "choose another folder with --out"
_SHOWN = 8


def default_folder(study: Study) -> Path:
    """``runs/NAME``."""
    return Path("runs") / study.name


def existing_run(folder: Path) -> RunFolder:
    """Run folder that a person names; `UserError` if it is none."""
    run = RunFolder(folder)
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}", "sparsehpc run STUDY makes one, by default runs/NAME")
    if not run.plan.is_file():
        raise UserError(f"{folder} is no run folder: it has no plan.parquet", "sparsehpc run STUDY makes one")
    refuse_links(run)
    return run


def refuse_links(run: RunFolder) -> None:
    """Refuse a run whose parts are links that leave it: it may come from someone else."""
    root = run.root.resolve()
    for name in sorted(ENTRIES):
        path = run.root / name
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(
                f"{path} is a symbolic link that leaves the run folder", "move what it points to into the run folder"
            )


def open_run(folder: Path, study: Study, cells: Sequence[Cell]) -> RunFolder:
    """Make a run folder for a plan, or open the one that was made for the same plan.

    Resources may change between two openings (they do not decide results), and timings may be added or changed; study
    and plan are then written anew. So they are where the run never began, because its texts or models could not be
    read: the study may then be repaired.

    Raises
    ------
    UserError
        The folder cannot be written, holds something else, or was made from another study.
    """
    run = RunFolder(folder)
    _check_place(folder)
    refuse_links(run)
    begun = run.inputs.exists() or run.cells.exists() or run.submissions.exists()
    if run.plan.exists() and begun:
        _same_study(run, study, cells)
    if not begun or not run.plan.exists() or not run.study.exists() or _study_text(run) != study.text:
        write_text(run.study, study.text)
        write_plan(run.plan, cells)
    run.logs.mkdir(exist_ok=True)  # Slurm does not make the folder that a log is to go into
    return run


def _check_place(folder: Path) -> None:
    """Refuse what is no folder, not ours or not writable, before anything is written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a run folder", _OTHER_FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
    except OSError as error:
        raise UserError(f"the run folder {folder} cannot be made or read: {error.strerror}", _OTHER_FOLDER) from error
    foreign = sorted(entries - ENTRIES)
    if foreign and "plan.parquet" not in entries:
        raise UserError(
            f"{folder} is not empty and no run folder of sparsehpc (it holds {', '.join(foreign[:3])})", _OTHER_FOLDER
        )
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        # Asking for the mode is not enough: root writes through modes, and no one through a read-only mount.
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"the run folder {folder} cannot be written: {error.strerror}", _OTHER_FOLDER) from error


def _same_study(run: RunFolder, study: Study, cells: Sequence[Cell]) -> None:
    there = planned_ids(run.plan, behaviour_only=True)
    here = [cell.cell_id for cell in cells if cell.latency is None]
    if there == here:
        return
    differences = list(_differences(_stored_study(run), tomllib.loads(study.text)))
    if not differences:
        differences = [f"{len(there)} cells there, {len(here)} here, of which {len({*there} & {*here})} are the same"]
    if len(differences) > _SHOWN:
        differences[_SHOWN:] = [f"{len(differences) - _SHOWN} more differences"]
    raise UserErrors(
        f"{run.root} was made from another study than {study.path}", differences, "name a new folder with --out"
    )


def _study_text(run: RunFolder) -> str:
    return run.study.read_text(encoding="utf-8")


def _stored_study(run: RunFolder) -> dict[str, Any]:
    try:
        return tomllib.loads(_study_text(run))
    except (OSError, ValueError) as error:
        raise UserError(f"{run.study} cannot be read: {error}", "name a new folder with --out") from error


def _differences(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """Key by key, what two study files say differently."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            yield from _differences(there.get(key), here.get(key), f"{place}.{key}" if place else key)
    elif isinstance(there, list) and isinstance(here, list) and any(isinstance(x, dict) for x in [*there, *here]):
        for n in range(max(len(there), len(here))):
            yield from _differences(
                there[n] if n < len(there) else None, here[n] if n < len(here) else None, f"{place}[{n + 1}]"
            )
    elif there != here:
        yield f"{place} is {_shown(there)} there, {_shown(here)} here"


def _shown(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."

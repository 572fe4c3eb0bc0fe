"""What a run reads, fixed when the run is made: which snapshot of each model, and which tokens.

``tokens/<key>.npz`` holds evaluation windows, calibration windows and prompts; ``inputs.json`` names snapshots and
digests, and nodes trust a file only where its digest is the one written there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.spec import Study
from slurm.resources import Resources
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.files import write_text
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.provenance import software
from sparsehpc.core.spec import Calibration, Cell
from sparsehpc.models.snapshot import Snapshot, open_snapshot
from sparsehpc.text.build import calibration_windows, evaluation_windows, generation_prompts
from sparsehpc.text.tokenizer import load_tokenizer
from sparsehpc.text.windows import TokenWindows

_VERSION = 1
_AGAIN = "run or submit the study again"


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """Content of ``inputs.json``.

    Parameters
    ----------
    models
        By `model_key`: folder and digest of the snapshot.
    tokens
        By token key: digest of ``tokens/<key>.npz``.
    resources
        By name: the resource classes of the study.
    """

    models: dict[str, dict[str, str]]
    tokens: dict[str, str]
    resources: dict[str, dict[str, Any]]

    def snapshot(self, cell: Cell) -> Snapshot:
        """Open the snapshot that the run was made with; `UserError` where it has changed since."""
        entry = self.models.get(model_key(cell))
        if entry is None:
            raise UserError(f"the run knows no snapshot of {cell.model}", _AGAIN)
        snapshot = dataclasses.replace(Snapshot.load(Path(entry["folder"])), model=cell.model)
        _same_weights(snapshot, entry["digest"])
        return snapshot

    def resource(self, name: str) -> Resources:
        """One resource class."""
        return Resources.from_table(name, {k: v for k, v in self.resources[name].items() if k != "name"})

    def evaluation(self, run: RunFolder, cell: Cell) -> TokenWindows:
        """Evaluation windows of a cell."""
        return self._load(run, evaluation_key(cell))

    def calibration(self, run: RunFolder, cell: Cell, calibration: Calibration) -> TokenWindows:
        """Calibration windows of one draw."""
        return self._load(run, calibration_key(cell, calibration))

    def prompts(self, run: RunFolder, cell: Cell) -> NDArray[np.int64]:
        """Prompts for greedy generation, prompts x tokens."""
        return np.stack(self._load(run, prompts_key(cell)).ids)

    def _load(self, run: RunFolder, key: str) -> TokenWindows:
        windows = TokenWindows.load(token_file(run, key))
        if windows.digest != self.tokens.get(key):
            raise UserError(f"{token_file(run, key)} is not what this run was made with", f"delete it, then {_AGAIN}")
        return windows


def fix_inputs(run: RunFolder, study: Study, cells: Sequence[Cell]) -> Inputs:
    """Find every snapshot and write every token file that the cells need; what is there stays as it is.

    Raises
    ------
    UserErrors
        Models that are not prepared or have changed, corpora that are missing, empty or too short: all at once.
    """
    run = RunFolder(run.root.absolute())  # the study's relative paths start at its own folder
    before = load_inputs(run) if run.inputs.exists() else Inputs({}, {}, {})
    models, tokens, problems = dict(before.models), dict(before.tokens), []
    sources: dict[str, str] = {}
    firsts = {model_key(cell): cell for cell in reversed(cells)}
    calibrations: dict[str, dict[Calibration, None]] = {}
    for cell in cells:
        if cell.pruning.calibration is not None:
            calibrations.setdefault(model_key(cell), {})[cell.pruning.calibration] = None
    with contextlib.chdir(study.path.parent):
        for key, cell in firsts.items():
            try:
                snapshot = open_snapshot(cell.model, cell.revision)
                if key in models:
                    _same_weights(snapshot, models[key]["digest"])
                models[key] = {"folder": str(snapshot.path.absolute()), "digest": snapshot.digest}
                for name, windows in _tokens(run, cell, snapshot, list(calibrations.get(key, {})), tokens):
                    tokens[name], sources[name] = windows.digest, windows.source
            except UserErrors as error:
                problems += [f"{cell.model}: {problem}" for problem in error.problems]
            except UserError as error:
                problems.append(str(error).replace("\n", "\n  "))
    if problems:
        raise UserErrors(f"study {study.name} cannot start", list(dict.fromkeys(problems)))
    resources = {name: dataclasses.asdict(resource) for name, resource in study.resources.items()}
    inputs = Inputs(models, tokens, resources)
    if inputs != before:
        write_text(run.inputs, json.dumps({"version": _VERSION, **dataclasses.asdict(inputs)}, indent=1) + "\n")
    if not run.provenance.exists():
        made = {
            **software(),
            "study": study.name,
            "study_digest": hashlib.sha256(study.text.encode()).hexdigest(),
            "snapshots": {key: entry["digest"] for key, entry in models.items()},
            "tokens": {name: {"digest": tokens[name], "source": source} for name, source in sources.items()},
        }
        write_text(run.provenance, json.dumps(made, indent=1) + "\n")
    return inputs


def load_inputs(run: RunFolder) -> Inputs:
    """Read ``inputs.json``."""
    try:
        data = json.loads(run.inputs.read_text(encoding="utf-8"))
        if data.pop("version") != _VERSION:
            raise ValueError("another version")
        return Inputs(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run.inputs} is missing or damaged: {error}", _AGAIN) from error


def model_key(cell: Cell) -> str:
    """Name of a model in ``inputs.json``."""
    return f"{cell.model}@{cell.revision}" if cell.revision else cell.model


def evaluation_key(cell: Cell) -> str:
    """Name of the evaluation windows' file."""
    return _key("evaluation", model_key(cell), dataclasses.asdict(cell.evaluation))


def calibration_key(cell: Cell, calibration: Calibration) -> str:
    """Name of the calibration windows' file; what evaluation reads decides what is left for calibration."""
    return _key("calibration", model_key(cell), dataclasses.asdict(calibration), dataclasses.asdict(cell.evaluation))


def prompts_key(cell: Cell) -> str:
    """Name of the prompts' file."""
    return _key("prompts", model_key(cell))


def token_file(run: RunFolder, key: str) -> Path:
    """File of windows."""
    return run.tokens / f"{key}.npz"


def _tokens(
    run: RunFolder, cell: Cell, snapshot: Snapshot, calibrations: Sequence[Calibration], known: dict[str, str]
) -> list[tuple[str, TokenWindows]]:
    """Every set of windows that one model's cells read: loaded where it was fixed before, else made and saved."""
    tokenizer, longest = load_tokenizer(snapshot.path), snapshot.structure.max_positions

    def fixed(key: str, make: Callable[[], TokenWindows]) -> tuple[str, TokenWindows]:
        return key, _fixed(token_file(run, key), known.get(key), make)

    return [
        fixed(evaluation_key(cell), lambda: evaluation_windows(cell.evaluation, tokenizer, longest)),
        fixed(prompts_key(cell), lambda: _as_windows(generation_prompts(tokenizer), tokenizer.digest)),
        *(
            fixed(
                calibration_key(cell, draw),
                functools.partial(calibration_windows, draw, cell.evaluation, tokenizer, longest),
            )
            for draw in calibrations
        ),
    ]


def _fixed(path: Path, digest: str | None, make: Callable[[], TokenWindows]) -> TokenWindows:
    """Windows of a file that was fixed before, else made and saved."""
    if digest is not None and path.exists():
        windows = TokenWindows.load(path)
        if windows.digest != digest:
            raise UserError(f"{path} is not what this run was made with", f"delete it, then {_AGAIN}")
        return windows
    windows = make()
    if digest is not None and windows.digest != digest:
        raise UserError(
            f"the text of {windows.source} has changed since the run was made",
            "put the old text back, or name a new folder with --out",
        )
    windows.save(path)
    return windows


def _as_windows(prompts: NDArray[np.int64], tokenizer_digest: str) -> TokenWindows:
    return TokenWindows(
        ids=tuple(prompts),
        text_bytes=(0,) * len(prompts),
        every_position=True,
        starts=tuple(range(len(prompts))),
        source=f"samples, beginnings of {prompts.shape[1]} tokens; tokenizer sha256 {tokenizer_digest}",
    )


def _same_weights(snapshot: Snapshot, digest: str) -> None:
    if snapshot.digest != digest:
        raise UserError(
            f"the snapshot of {snapshot.model} in {snapshot.path} is not the one this run was made with "
            f"(sha256 {snapshot.digest[:12]}, was {digest[:12]})",
            "prepare the same revision again, or name a new folder with --out",
        )


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]

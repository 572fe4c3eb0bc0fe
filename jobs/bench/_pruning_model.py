"""Whole models, every method at 50 %: where the time of pruning one goes."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench import Row
from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Calibration, Cell, Pruning, Windows

if TYPE_CHECKING:
    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.results import CellResult
    from sparsehpc.text.windows import TokenWindows

_SPARSITY = "0.5"
_CALIBRATION = Calibration(corpus="python-docs", windows=24, window_tokens=256)
_EVALUATION = Windows(corpus="python-docs", windows=4, window_tokens=256)
#: What a further row shows beside the methods at their defaults.
_EXTRA: tuple[tuple[str, dict[str, Any]], ...] = (
    ("wanda", {"refit": True}),
    ("wanda", {"true_sequential": True}),
    ("wanda", {"allocation": "owl"}),
)


def rows(model: str, repeats: int) -> list[Row]:
    """One row a method: median seconds of each phase, and its pruning time against reading the calibration text once.

    Parameters
    ----------
    model
        A prepared model.
    repeats
        Rounds; in each, every method runs once, after the baseline.
    """
    from sparsehpc.models.sources import prepare
    from sparsehpc.text.build import calibration_windows, evaluation_windows
    from sparsehpc.text.tokenizer import load_tokenizer

    snapshot = prepare(model)
    tokenizer, room = load_tokenizer(snapshot.path), snapshot.structure.max_positions
    evaluation = evaluation_windows(_EVALUATION, tokenizer, room)
    calibration = calibration_windows(_CALIBRATION, _EVALUATION, tokenizer, room)
    cells = {name: cell for name, cell in _cells(model) if _fits(cell, snapshot)}
    if not cells:
        raise UserError(f"no method can prune {model} to {_SPARSITY}")
    reads_s: list[float] = []
    found: dict[str, list[CellResult]] = {name: [] for name in cells}
    for repeat in range(repeats):
        reads_s.append(_read_once(snapshot, calibration))
        for number, (name, cell) in enumerate(cells.items(), 1):
            sys.stderr.write(f"round {repeat + 1} of {repeats}, method {number} of {len(cells)}: {name}\n")
            found[name].append(_run(cell, snapshot, evaluation, calibration))
    return [_row(name, cells[name], results, reads_s) for name, results in found.items()]


def _cells(model: str) -> Iterator[tuple[str, Cell]]:
    """Every registered method, unstructured where it can, and Wanda with what can be added to it."""
    from sparsehpc.pruning.base import METHODS

    defaults: list[tuple[str, dict[str, Any]]] = [(name, {}) for name, _ in METHODS]
    for name, options in (*defaults, *_EXTRA):
        kind = METHODS.get(name)
        calibrated = kind.needs_calibration(options.get("allocation", "default"), options.get("refit", False))
        pattern = "unstructured" if "unstructured" in kind.patterns else kind.patterns[-1]
        pruning = Pruning(
            method=name, pattern=pattern, sparsity=_SPARSITY,
            calibration=_CALIBRATION if calibrated else None, **options,
        )  # fmt: skip
        said = ", ".join(key if value is True else f"{key} {value}" for key, value in options.items())
        variant = "masked" if pruning.pattern == "unstructured" else "compact"
        yield (
            f"{name}{f' ({said})' if said else ''}",
            Cell(model=model, dtype="float32", evaluation=_EVALUATION, variant=variant, pruning=pruning),
        )


def _fits(cell: Cell, snapshot: Snapshot) -> bool:
    from sparsehpc.pruning.base import METHODS

    parameters = snapshot.structure.prunable(cell.pruning.targets)
    return METHODS.get(cell.pruning.method).unsupported(cell.pruning, parameters) is None


def _read_once(snapshot: Snapshot, text: TokenWindows) -> float:
    """Seconds in which the dense model's layers read the calibration text, one after another, collecting nothing."""
    import torch

    from sparsehpc.combinations import dense_survey
    from sparsehpc.models.hidden import HiddenStates
    from sparsehpc.models.stream import LayerWalk

    with torch.inference_mode():
        walk = LayerWalk(snapshot, "float32", "cpu")
        lengths = [len(window) for window in text.ids]
        hidden = HiddenStates(lengths, snapshot.structure.hidden, walk.dtype, "cpu", None)
        start = time.perf_counter()
        dense_survey(walk, text, hidden, (), (), lambda stage, done, total: None)
        elapsed = time.perf_counter() - start
        hidden.close()
    return elapsed


def _run(cell: Cell, snapshot: Snapshot, evaluation: TokenWindows, calibration: TokenWindows) -> CellResult:
    from sparsehpc.pipeline import run_cells

    results: list[CellResult | Exception] = []
    with tempfile.TemporaryDirectory() as scratch:
        run_cells(
            [cell], snapshot, evaluation, {_CALIBRATION: calibration}, None, scratch=Path(scratch),
            finished=lambda _, result: results.append(result),
        )  # fmt: skip
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def _row(name: str, cell: Cell, results: list[CellResult], reads_s: list[float]) -> Row:
    prune_s = [float(result.row["prune_s"]) for result in results]
    phases = {
        key: statistics.median(result.row[key] for result in results) for key in ("load_s", "encode_s", "evaluate_s")
    }
    calibrate_s = statistics.median(result.calibrate_s for result in results)
    zeros = {
        m.numerator / m.denominator
        for result in results
        for m in result.measurements
        if (m.scope, m.convention, m.metric) == ("model", "unique", "sparsity_prunable")
    }
    return {
        "work": f"{cell.model} {name} {Decimal(_SPARSITY) * 100:.0f} %",
        "baseline": "the dense layers read the calibration text once",
        "ratio": statistics.median(reads_s) / statistics.median(prune_s),
        "seconds": statistics.median(prune_s),
        "seconds_low": min(prune_s),
        "seconds_high": max(prune_s),
        "baseline_seconds": statistics.median(reads_s),
        "baseline_seconds_low": min(reads_s),
        "baseline_seconds_high": max(reads_s),
        "repeats": len(results),
        "calibrate_s": calibrate_s,
        "select_s": statistics.median(prune_s) - calibrate_s,
        **phases,
        "params": {
            "pattern": cell.pruning.pattern,
            "sparsity_prunable": zeros.pop(),
            "calibration_windows": _CALIBRATION.windows if cell.pruning.calibration else 0,
            "window_tokens": _CALIBRATION.window_tokens,
            "evaluation_windows": _EVALUATION.windows,
            "dtype": cell.dtype,
        },
    }

"""Join runs of one study that were made in different places; what contradicts is refused."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aggregate import scan as scanning
from aggregate.api import aggregate_run
from aggregate.describe import provenance_of
from aggregate.reduce import reduce_shards
from aggregate.scan import Coverage
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.files import write_atomically, write_text
from sparsehpc.core.layout import RunFolder

#: Tables of a study file that decide where cells run, not what they are.
_WHERE = ("resources",)

#: What went into a cell; equal or another experiment.
_INPUTS = ("snapshot_digest", "evaluation_digest", "calibration_digest")

#: What is counted is equal on every machine.
_COUNTS = ("params_nonzero", "bytes_total", "flops_executed")

#: What is estimated rounds differently on other processors, by far less than the tolerance.
_BEHAVIOUR = ("perplexity", "top1_agreement")
_TOLERANCE = 0.01

#: Problems that are listed one by one.
_MOST = 20


class Merged(NamedTuple):
    """What `merge_runs` did.

    Parameters
    ----------
    run
        The folder that now holds everything.
    coverage
        State of its cells.
    taken
        Cells that were copied, by run.
    doubles
        Cells that several runs had and that agree; the first run's are kept.
    """

    run: RunFolder
    coverage: Coverage
    taken: dict[str, int]
    doubles: int


def merge_runs(runs: Sequence[RunFolder], out: Path) -> Merged:
    """Copy the cells of several runs of one study into a new run folder, and aggregate it.

    A cell is taken from the first run in which it is done. The merged folder can be resumed and merged again; running
    the same merge twice gives the same.

    Raises
    ------
    UserErrors
        Fewer than two runs, studies that differ in more than their resources, or cells whose results contradict:
        other weights, other texts, another number of zeros, or behaviour that differs by more than 1 %.
    """
    if len({run.root.resolve() for run in runs}) < 2:
        raise UserError("a merge needs at least two different runs", "sparsehpc merge RUN RUN --out DIR")
    target = RunFolder(out)
    _check_target(target, runs)
    coverages = [scanning.scan(run, verify=True) for run in runs]
    _same_study(runs, coverages)
    doubles = _contradictions(runs, coverages)
    taken = _copy(runs, coverages, target)
    coverage = aggregate_run(target, figures=False)
    return Merged(target, coverage, taken, doubles)


def _check_target(target: RunFolder, runs: Sequence[RunFolder]) -> None:
    if any(target.root.resolve() == run.root.resolve() for run in runs):
        raise UserError(f"{target.root} is one of the runs that are merged", "name a new folder with --out")
    if not target.root.exists():
        return
    if not target.root.is_dir():
        raise UserError(f"{target.root} is a file", "name a new folder with --out")
    if any(target.root.iterdir()) and "merged" not in provenance_of(target):
        raise UserError(f"{target.root} is not empty and no earlier merge", "name a new folder with --out")


def _same_study(runs: Sequence[RunFolder], coverages: Sequence[Coverage]) -> None:
    first = _study(runs[0])
    problems = []
    for run, coverage in zip(runs[1:], coverages[1:], strict=True):
        other = _study(run)
        problems += [
            f"{run.root}: [{key}] of its study differs from {runs[0].root}'s"
            for key in sorted({*first, *other})
            if first.get(key) != other.get(key)
        ]
        if set(coverage.cell_ids) != set(coverages[0].cell_ids):
            problems.append(f"{run.root}: its plan holds other cells than {runs[0].root}'s")
    if problems:
        raise UserErrors("these are not runs of one study", problems, "sparsehpc diff RUN RUN compares them")


def _study(run: RunFolder) -> dict[str, Any]:
    try:
        study = tomllib.loads(run.study.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run.study} cannot be read: {error}", "restore it from the study the run was made from"
        ) from error
    # Which class a model runs in belongs to the cluster too.
    models = [{k: v for k, v in model.items() if k != "resource"} for model in study.get("models", [])]
    return {key: value for key, value in {**study, "models": models}.items() if key not in _WHERE}


def _contradictions(runs: Sequence[RunFolder], coverages: Sequence[Coverage]) -> int:
    """Compare cells that are done more than once; the number of those that agree."""
    facts = [_facts(run, coverage) for run, coverage in zip(runs, coverages, strict=True)]
    doubles: set[str] = set()
    problems = []
    for later, run in enumerate(runs):
        for cell, here in facts[later].items():
            earlier = next((n for n in range(later) if cell in facts[n]), None)
            if earlier is None:
                continue
            doubles.add(cell)
            problems += [
                f"cell {cell}: {name} is {facts[earlier][cell][name]} in {runs[earlier].root} and {value} in {run.root}"
                for name, value in here.items()
                if not _agree(name, facts[earlier][cell][name], value)
            ]
    if problems:
        more = [f"{len(problems) - _MOST} more"] if len(problems) > _MOST else []
        raise UserErrors("the runs contradict each other", [*problems[:_MOST], *more], "nothing was merged")
    return len(doubles)


def _facts(run: RunFolder, coverage: Coverage) -> dict[str, dict[str, Any]]:
    """By cell: digests of what went in, and the figures that came out."""
    positions = scanning.done_positions(coverage)
    rows = [row for row in coverage.rows if row is not None]
    found: dict[str, dict[str, Any]] = {str(row["cell_id"]): {name: row[name] for name in _INPUTS} for row in rows}
    model = reduce_shards(run, positions, rows).wide.get("model")
    for line in [] if model is None else model.to_pylist():
        if line["convention"] != "study":
            figures = {name: line.get(name) for name in (*_COUNTS, *_BEHAVIOUR)}
            found[coverage.cell_ids[line["position"]]] |= figures
    return found


def _agree(name: str, first: Any, second: Any) -> bool:
    if first is None or second is None or name not in _BEHAVIOUR:
        return bool(first == second)
    return bool(abs(first - second) <= _TOLERANCE * max(abs(first), abs(second)))


def _copy(runs: Sequence[RunFolder], coverages: Sequence[Coverage], target: RunFolder) -> dict[str, int]:
    target.root.mkdir(parents=True, exist_ok=True)
    for name in ("study.toml", "inputs.json", "extensions.json"):
        if (runs[0].root / name).is_file():
            _copy_file(runs[0].root / name, target.root / name)
    if runs[0].tokens.is_dir():
        for path in sorted(runs[0].tokens.iterdir()):
            _copy_file(path, target.tokens / path.name)
    taken = {str(run.root): 0 for run in runs}
    states = [dict(zip(coverage.cell_ids, coverage.states, strict=True)) for coverage in coverages]
    for cell in coverages[0].cell_ids:
        for state in ("done", "failed"):
            index = next((n for n, found in enumerate(states) if found[cell].state == state), None)
            if index is None:
                continue
            source, folder = runs[index].cell(cell), target.cell(cell)
            # The row is the commit mark and goes last.
            for path in (source.measurements, source.row) if state == "done" else (source.failure,):
                _copy_file(path, folder.root / path.name)
            taken[str(runs[index].root)] += state == "done"
            break
    _copy_file(runs[0].plan, target.plan)
    merged = {**provenance_of(runs[0]), "merged": [_without_merged(provenance_of(run)) for run in runs]}
    write_text(target.provenance, json.dumps(merged, indent=1))
    return taken


def _without_merged(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key != "merged"}


def _copy_file(source: Path, target: Path) -> None:
    write_atomically(target, lambda path: shutil.copyfile(source, path))

"""What cells will cost: minutes a job, core-hours and GPU-hours, before anything is submitted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.inputs import Inputs
from jobs.pack import by_walk, combinations
from jobs.spec import Study
from slurm.cost import STARTUP_S, CostModel, Estimate, Work, job_seconds
from slurm.resources import Resources
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell
from sparsehpc.models.snapshot import structure_of

#: Runs beside this one, and rows of each, that are read to learn how long cells take.
_RUNS, _ROWS = 20, 20_000
_COSTS = (
    "cell_id",
    "model",
    "dtype",
    "device",
    "method",
    "variant",
    "load_s",
    "dense_s",
    "prune_s",
    "encode_s",
    "evaluate_s",
)
_PLAN = ("cell_id", "evaluation_corpus", "evaluation_windows", "evaluation_window_tokens")
#: Texts of this corpus are their own windows, and short.
_SHORT, _SHORT_TOKENS = "samples", 96
#: Groups of a decoder layer's linears that read the same input: query to value, output, up and gate, down.
_GROUPS = 4


class Prices:
    """Estimates for the cells of a study.

    Parameters
    ----------
    resources
        Resource classes by name.
    parameters
        Number of parameters by model and revision.
    model
        The cost model.
    """

    def __init__(
        self, resources: Mapping[str, Resources], parameters: Mapping[tuple[str, str | None], int], model: CostModel
    ) -> None:
        self.resources, self.parameters, self.model = resources, parameters, model
        self._known: dict[tuple[object, ...], Estimate] = {}

    def estimate(self, cell: Cell) -> Estimate:
        """Estimate one cell."""
        axes = (cell.model, cell.dtype, cell.resource, cell.variant, cell.evaluation, cell.latency)
        key = (*axes, cell.pruning.method, cell.pruning.calibration, cell.pruning.true_sequential)
        if key not in self._known:
            evaluation, calibration, latency = cell.evaluation, cell.pruning.calibration, cell.latency
            self._known[key] = self.model.estimate(
                Work(
                    model=cell.model,
                    dtype=cell.dtype,
                    device=cell.device,
                    method=cell.pruning.method,
                    variant=cell.variant,
                    cores=self.resources[cell.resource].cpus,
                    parameters=self.parameters[cell.model, cell.revision],
                    evaluation_tokens=_tokens(evaluation.corpus, evaluation.windows, evaluation.window_tokens),
                    calibration_tokens=calibration.windows * calibration.window_tokens if calibration else 0,
                    # Through the unpruned layer, once for each group of linears where told so, and the pruned one.
                    calibration_passes=_GROUPS + 1 if cell.pruning.true_sequential else 2,
                    # Dense and stored weights in turns, once more than is counted.
                    decoded_tokens=2 * (latency.repeats + 1) * latency.new_tokens if latency else 0,
                )
            )
        return self._known[key]

    def seconds(self, cells: Sequence[Cell]) -> float:
        """Seconds of a job of cells that share a pass over the model."""
        return job_seconds((cell.pruning, self.estimate(cell)) for cell in cells)

    def packs(self, cells: Sequence[Cell], target_s: float, most: int) -> list[tuple[Cell, ...]]:
        """Jobs of about ``target_s`` seconds and at most ``most`` cells; order is kept.

        Cells of one combination stay together as long as they fit: they share the pruning. Those that are timed make
        one job a model.
        """
        jobs: list[tuple[Cell, ...]] = []
        for group in by_walk(cells):
            if group[0].latency is not None:
                jobs.append(group)
                continue
            walk_s = STARTUP_S + self.estimate(group[0]).walk_s
            job: list[Cell] = []
            spent = walk_s
            for combination in combinations(group):
                estimates = [self.estimate(cell) for cell in combination]
                prune_s = max(estimate.prune_s for estimate in estimates)
                together = prune_s + sum(estimate.cell_s for estimate in estimates)
                if job and (len(job) + len(combination) > most or spent + together > target_s):
                    jobs.append(tuple(job))
                    job, spent = [], walk_s
                more = prune_s
                for cell, estimate in zip(combination, estimates, strict=True):
                    more += estimate.cell_s
                    if job and (len(job) == most or spent + more > target_s):
                        jobs.append(tuple(job))
                        job, spent, more = [], walk_s, prune_s + estimate.cell_s
                    job.append(cell)
                    spent += more
                    more = 0.0
            jobs.append(tuple(job))
        return jobs


def load_prices(study: Study, run: RunFolder) -> Prices:
    """Prices from the ``costs`` tables of this run and of the runs beside it."""
    history = _history(run)  # before the folder changes: the run's path may be relative
    with contextlib.chdir(study.path.parent):
        sizes = {(m.id, m.revision): structure_of(m.id, m.revision).params_total for m in study.models}
    return Prices(study.resources, sizes, CostModel(history))


def run_prices(run: RunFolder, inputs: Inputs, cells: Iterable[Cell]) -> Prices:
    """Prices for an existing run, whose models are known by their snapshots."""
    first = {(cell.model, cell.revision): cell for cell in cells}
    sizes = {key: inputs.snapshot(cell).structure.params_total for key, cell in first.items()}
    return Prices({name: inputs.resource(name) for name in inputs.resources}, sizes, CostModel(_history(run)))


def _history(run: RunFolder) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for folder in _runs(run):
        with contextlib.suppress(OSError, ValueError, KeyError, UserError):
            costs = pq.read_table(folder.tables / "costs.parquet", columns=list(_COSTS)).slice(0, _ROWS)
            plan = pq.read_table(folder.plan, columns=list(_PLAN))
            rows += costs.join(plan, keys="cell_id", join_type="inner").to_pylist()
    for row in rows:
        row["evaluation_tokens"] = _tokens(*(row[name] for name in _PLAN[1:]))
    return rows


def _tokens(corpus: str, windows: int, window_tokens: int) -> int:
    return windows * (min(window_tokens, _SHORT_TOKENS) if corpus == _SHORT else window_tokens)


def _runs(run: RunFolder) -> list[RunFolder]:
    """Find this run and the latest ones in the same folder that have a costs table."""
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for folder in run.root.absolute().parent.iterdir():
            with contextlib.suppress(OSError):
                found.append(((folder / "tables" / "costs.parquet").stat().st_mtime, folder))
    return [RunFolder(folder) for _, folder in sorted(found, reverse=True)[:_RUNS]]

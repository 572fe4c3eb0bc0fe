"""Dispatch: plan, submit and collect no-op cells through a real Slurm, against bare submitit.

Both sides send the same callables in the same packs to the same cluster and read every result back. Without the
option ``profile`` a private cluster is started and ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.bench import Row
from jobs.bench._cluster import cluster, folder
from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Cell, Pruning, Windows, decimal_text

DEFAULTS = {"cells": "10000", "pack": "20", "profile": "", "repeats": "1", "dir": ""}
_POLL_S = 0.5


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A pack of cells that computes nothing: what is measured is everything around it."""

    cell_ids: tuple[str, ...]

    def __call__(self) -> int:
        """Number of cells."""
        return len(self.cell_ids)


def run(options: Mapping[str, str]) -> list[Row]:
    """Measure; options: ``cells``, ``pack``, ``profile``, ``repeats``, ``dir`` (a folder that nodes see)."""
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UserError(f"suite dispatch has no option {unknown[0]!r}; legal: {', '.join(DEFAULTS)}")
    values = {**DEFAULTS, **options}
    cells, pack, repeats = (int(values[key]) for key in ("cells", "pack", "repeats"))
    rows: list[Row] = []
    with cluster(values["profile"], tasks=-(-cells // pack)) as profile, folder(values["dir"]) as place:
        for repeat in range(repeats):
            # The order turns with every repeat, so that neither side always meets a warm machine.
            sides = [("ours", _ours), ("submitit", _submitit)]
            took: dict[str, dict[str, float]] = {}
            for name, side in sides if repeat % 2 == 0 else sides[::-1]:
                took[name] = side(cells, pack, profile, place / f"{name}-{repeat}")
            rows.append(
                {
                    "suite": "dispatch",
                    "work": f"{cells} no-op cells in packs of {pack}",
                    "baseline": "bare submitit",
                    "ratio": took["submitit"]["total_s"] / took["ours"]["total_s"],
                    **{f"ours_{key}": round(value, 2) for key, value in took["ours"].items()},
                    **{f"submitit_{key}": round(value, 2) for key, value in took["submitit"].items()},
                }
            )
    return rows


def no_op_cells(count: int) -> list[Cell]:
    """Cells that differ in their sparsity."""
    windows = Windows(corpus="samples", windows=1, window_tokens=2)
    places = len(str(count))
    return [
        Cell(
            model="random:tiny",
            pruning=Pruning(method="magnitude", pattern="unstructured", sparsity=decimal_text(f"{n}e-{places}")),
            variant="masked",
            evaluation=windows,
        )
        for n in range(count)
    ]


def _packs(cells: int, pack: int) -> list[tuple[str, ...]]:
    ids = [cell.cell_id for cell in no_op_cells(cells)]
    return [tuple(ids[start : start + pack]) for start in range(0, cells, pack)]


def _ours(cells: int, pack: int, profile: Any, folder: Path) -> dict[str, float]:
    from submitit.core.utils import DelayedSubmission

    from slurm.executor import ClusterExecutor
    from slurm.ledger import new_submission
    from slurm.limits import array_tasks, read_limits, split
    from slurm.queue import Queue
    from slurm.resources import Resources
    from slurm.send import send
    from slurm.track import track
    from sparsehpc.core.layout import RunFolder
    from sparsehpc.core.provenance import code_digest

    started = time.perf_counter()
    run = RunFolder(folder)
    queue = Queue(run.submissions, interval_s=profile.limits.poll_interval_s, accounting=profile.limits.accounting)
    resources = Resources(memory_gib=0.5, minutes=15)
    limits = read_limits(profile)
    planned = time.perf_counter()
    sent = []
    for tasks in split(_packs(cells, pack), array_tasks(profile.limits, limits)):
        fields = {"resources": dataclasses.asdict(resources), "profile": profile.name, "code_digest": code_digest()}
        submission = new_submission("dispatch", tasks=tuple(tasks), **fields)
        executor = ClusterExecutor(submission.folder(run), resources, profile, submission.job_name)
        script = executor.prepare([DelayedSubmission(Nothing(task)) for task in tasks])
        sent.append((send(run, submission, script, queue, profile.limits, lambda text: None), len(tasks)))
    submitted = time.perf_counter()
    counted = sum(_collect(item.folder(run), item.job_id, tasks) for item, tasks in sent)
    tracker = track(run, queue)
    _all_there(counted, cells)
    if any(place.stand in ("queued", "unclear") for place in tracker.places().values()):
        raise UserError("the scheduler still holds tasks whose results are there")
    return _times(started, planned, submitted)


def _collect(folder: Path, job_id: str, tasks: int) -> int:
    """Read every result as it comes, by listing the folder: no question to the scheduler."""
    from submitit.core.utils import pickle_load

    waiting = {f"{job_id}_{task}_0_result.pkl" for task in range(tasks)}
    counted = 0
    while waiting:
        for name in waiting & {path.name for path in folder.iterdir()}:
            outcome, value = pickle_load(folder / name)  # our own, written by our own job a moment ago
            counted += value if outcome == "success" else 0
            waiting.discard(name)
        if waiting:
            time.sleep(_POLL_S)
    return counted


def _submitit(cells: int, pack: int, profile: Any, folder: Path) -> dict[str, float]:
    import submitit

    from slurm.limits import array_tasks, read_limits, split
    from slurm.resources import Resources

    job = profile.job_for(Resources())
    started = time.perf_counter()
    packs = _packs(cells, pack)
    most = array_tasks(profile.limits, read_limits(profile))
    planned = time.perf_counter()
    found: list[Any] = []
    for number, tasks in enumerate(split(packs, most)):
        executor = submitit.SlurmExecutor(folder / str(number))
        executor.update_parameters(
            job_name="bare", time=15, mem="512MB", cpus_per_task=1, array_parallelism=job.array_parallelism, wckey=None,
            partition=job.partition or None, account=job.account or None,
        )  # fmt: skip
        found += executor.submit_array([Nothing(task) for task in tasks])
    submitted = time.perf_counter()
    _all_there(sum(job.result() for job in found), cells)
    return _times(started, planned, submitted)


def _all_there(counted: int, cells: int) -> None:
    if counted != cells:
        raise UserError(f"{counted} of {cells} cells came back; logs are in the folder given by --set dir=")


def _times(started: float, planned: float, submitted: float) -> dict[str, float]:
    now = time.perf_counter()
    parts = {"plan_s": planned - started, "submit_s": submitted - planned, "collect_s": now - submitted}
    return {"total_s": now - started, **parts}

"""The callable that a node runs: a run folder and cell ids in, shards out.

State is always read from disk: cells whose shard is whole are skipped, so that a requeued, repeated or half finished
job does what is left and nothing else. The object that is pickled for submitit holds a path and names, nothing more.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.folder import refuse_links
from jobs.inputs import Inputs, load_inputs
from jobs.pack import by_walk
from jobs.plan_file import read_plan
from jobs.threads import pinned, set_after_imports, set_before_imports, usable_cores
from slurm.stage import Stage
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.core.layout import RunFolder, check_cell_id
from sparsehpc.core.shards import shard_state, write_failure, write_shard
from sparsehpc.core.spec import Calibration, Cell

if TYPE_CHECKING:
    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.results import CellResult
    from sparsehpc.text.windows import TokenWindows

Progress = Callable[[str, int, int], None]

#: Part of a job's memory that hidden states and weights may fill before they go to the scratch disk; the rest is
#: for the interpreter, torch and the layer in work.
MEMORY_SHARE = 0.6
GIB = 1 << 30
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
#: Errors of the machine, not of the program: another node or another day can help.
_NODE_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.EACCES}
_LOG_EVERY_S = 10.0


class CellsFailed(SparseHPCError):
    """Some cells of a job failed; each has a failure record beside where its shard will be."""


@dataclasses.dataclass(frozen=True)
class CellJob:
    """One job: what submitit pickles, and what ``python -m jobs cell`` runs.

    Parameters
    ----------
    run_folder
        Absolute path of the run folder.
    cell_ids
        Cells to compute, whole shards left alone.
    """

    run_folder: str
    cell_ids: tuple[str, ...]

    def __call__(self, progress: Progress | None = None) -> dict[str, int]:
        """Compute; returns how many cells were done before and done now.

        Raises
        ------
        CellsFailed
            After all cells were tried, where one failed.
        """
        return run_cells_of_job(RunFolder(Path(self.run_folder)), self.cell_ids, progress or LoggedProgress())

    def __submitit_checkpoint__(self) -> Any:
        """On preemption: the same call again, since what is done is known from disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(CellJob(self.run_folder, self.cell_ids))

    checkpoint = __submitit_checkpoint__


class LoggedProgress:
    """Progress as plain lines in the job's log, a few a minute."""

    def __init__(self) -> None:
        self._last = ("", 0.0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Write a line where the stage is new, complete, or the last line is old."""
        now = time.monotonic()
        if stage != self._last[0] or done == total or now - self._last[1] > _LOG_EVERY_S:
            self._last = (stage, now)
            sys.stdout.write(f"{datetime.datetime.now():%H:%M:%S} {stage} {done}/{total}\n")
            sys.stdout.flush()


def run_cells_of_job(run: RunFolder, cell_ids: Sequence[str], progress: Progress) -> dict[str, int]:
    """Compute the cells of a job that are not done; see `CellJob`."""
    for variable in _OFFLINE:
        os.environ[variable] = "1"
    for cell_id in cell_ids:
        check_cell_id(cell_id)
    refuse_links(run)
    inputs = load_inputs(run)
    cells = [
        cell
        for cell in read_plan(run.plan, cell_ids)
        if shard_state(run.cell(cell.cell_id), cell.cell_id).state != "done"
    ]
    counts = {"done before": len(cell_ids) - len(cells), "done now": 0}
    failures: list[str] = []
    if not cells:
        return counts
    timed = [cell.latency for cell in cells if cell.latency is not None]
    asked = max(latency.threads for latency in timed) if timed else 0
    threads = usable_cores(asked or max(inputs.resource(cell.resource).cpus for cell in cells))
    set_before_imports(threads, pinned=bool(timed))
    for cell in cells:
        # A record of an earlier attempt would speak for this one, should this process be killed.
        run.cell(cell.cell_id).failure.unlink(missing_ok=True)
    with Stage() as stage:
        for group in by_walk(cells):
            writer = _Writer(run, inputs, group)
            try:
                _compute(run, inputs, group, writer, progress, threads, stage)
            except Exception as error:  # noqa: BLE001 - recorded for every cell it hit, and raised below
                writer.fail(writer.open, error)
            writer.fail(writer.open, SparseHPCError("the pipeline ended without a result for this cell"))
            counts["done now"] += writer.done
            failures += writer.failed
    if failures:
        raise CellsFailed(
            f"{len(failures)} of {len(cell_ids)} cells failed, the last with: {failures[-1]}\n"
            f"  sparsehpc status {run.root} lists them; failure.json of each cell holds the whole message"
        )
    return counts


def _compute(
    run: RunFolder,
    inputs: Inputs,
    cells: Sequence[Cell],
    writer: _Writer,
    progress: Progress,
    threads: int,
    stage: Stage,
) -> None:
    """Run the pipeline for cells that share a walk."""
    cell = cells[0]
    calibrations: dict[Calibration, TokenWindows] = {
        draw: inputs.calibration(run, cell, draw) for draw in {c.pruning.calibration for c in cells} if draw is not None
    }
    prompts = inputs.prompts(run, cell)
    snapshot, writer.weights = _near(inputs.snapshot(cell), stage)
    if cell.latency is not None:
        with pinned(threads) as cores:  # before torch starts its threads, so that each stays on one of these
            from sparsehpc.latency.cells import time_cells

            set_after_imports(threads)
            time_cells(cells, snapshot, calibrations, prompts, cores, progress=progress, finished=writer)
        return
    evaluation = inputs.evaluation(run, cell)
    resource = inputs.resource(cell.resource)

    from sparsehpc.pipeline import run_cells

    set_after_imports(threads)
    with tempfile.TemporaryDirectory(prefix="sparsehpc-scratch-") as scratch:
        run_cells(
            cells,
            snapshot,
            evaluation,
            calibrations,
            prompts,
            scratch=Path(scratch),
            memory_bytes=int(resource.memory_gib * GIB * MEMORY_SHARE),
            checkpoint=_checkpoint(run, cells) if resource.checkpoint_layers else None,
            progress=progress,
            finished=writer,
        )


def _near(snapshot: Snapshot, stage: Stage) -> tuple[Snapshot, str]:
    """The snapshot out of node-local space where the job asks for that, and in words where it is read."""
    if not stage.wanted:
        return snapshot, ""
    placed = stage.place(snapshot.path, snapshot.digest, snapshot.files)
    sys.stdout.write(f"weights of {snapshot.model}: {placed.where}\n")
    sys.stdout.flush()
    if placed.folder == snapshot.path:
        return snapshot, placed.where
    # Times of change are those of the original.
    files = {name: {key: entry[key] for key in ("bytes", "sha256")} for name, entry in snapshot.files.items()}
    return dataclasses.replace(snapshot, path=placed.folder, files=files), placed.where


def _checkpoint(run: RunFolder, cells: Sequence[Cell]) -> Path:
    """Folder of the walk of these very cells."""
    ids = ",".join(sorted(cell.cell_id for cell in cells))
    return run.checkpoints / hashlib.sha256(ids.encode()).hexdigest()[:20]


class _Writer:
    """Commits every cell as soon as it is finished."""

    def __init__(self, run: RunFolder, inputs: Inputs, cells: Iterable[Cell]) -> None:
        self.run = run
        self.open = {cell.cell_id: cell for cell in cells}
        self.done = 0
        self.failed: list[str] = []
        #: Where weights are read, where a job asks for copies on its node.
        self.weights = ""

    def __call__(self, cell: Cell, result: CellResult | Exception) -> None:
        """Write the shard, or the failure record."""
        if isinstance(result, Exception):
            self.fail([cell.cell_id], result)
            return
        row = {**result.row, **_job_columns(self.weights)}
        try:
            write_shard(self.run.cell(cell.cell_id), row, result.measurements)
        except (OSError, UserError) as error:
            self.fail([cell.cell_id], error)
            return
        del self.open[cell.cell_id]
        self.done += 1

    def fail(self, cell_ids: Iterable[str], error: Exception) -> None:
        """Record an error for cells; a record that cannot be written is said aloud, the job fails all the same."""
        cause = cause_of(error)
        message = f"{type(error).__name__}: {error}" if not isinstance(error, SparseHPCError) else str(error)
        trace = "".join(traceback.format_exception(error))
        for number, cell_id in enumerate(list(cell_ids)):
            cell = self.open.pop(cell_id)
            self.failed.append(message.splitlines()[0])
            sys.stderr.write(f"cell {cell_id} ({cell.label()}) failed, cause {cause}\n{'' if number else trace}")
            try:
                write_failure(self.run.cell(cell_id), cause, message, traceback=trace, **_job_columns(self.weights))
            except (OSError, UserError) as unwritten:
                sys.stderr.write(f"its failure record cannot be written: {unwritten}\n")
        sys.stderr.flush()


def cause_of(error: BaseException) -> str:
    """Class of a failure: ``OOM``, ``TIME``, ``NODE`` (the machine) or ``CODE`` (the program, or its input).

    >>> cause_of(MemoryError()), cause_of(OSError(errno.ENOSPC, "full")), cause_of(ValueError("x"))
    ('OOM', 'NODE', 'CODE')
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "OOM"
    if isinstance(error, OSError) and error.errno in _NODE_ERRNO:
        return "NODE"
    # What submitit raises in the middle of the work once a job has timed out too often.
    return "TIME" if type(error).__name__ == "UncompletedJobError" else "CODE"


def _job_columns(weights: str) -> dict[str, Any]:
    """Columns of a cell row that only the job knows; ``weights`` says where they are read, empty unless asked for."""
    from sparsehpc.core.provenance import machine, software

    environment = os.environ
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "local")
    read = {"weights_read": weights} if weights else {}
    return {
        "job_id": job_id,
        "attempt": int(environment.get("SLURM_RESTART_COUNT") or 0),
        "provenance": json.dumps({**software(), **machine(), **read}, sort_keys=True),
    }

"""``sparsehpc run``: from a study file to tables, figures and a report on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jobs.extend import with_extensions
from jobs.folder import default_folder, open_run
from jobs.inputs import fix_inputs
from jobs.local import run_in_process, run_in_processes
from jobs.pack import CELLS_A_JOB, packs
from jobs.plan import Plan, make_plan
from jobs.progress import Reporter
from jobs.spec import Study
from jobs.study import load_study
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import shard_state
from sparsehpc.core.spec import Cell
from sparsehpc.models.snapshot import is_prepared, prepare_command
from sparsehpc.models.sources import offline_preparable, prepare
from sparsehpc.models.target import resolve

Executor = Literal["local", "debug"]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Parameters
    ----------
    run
        The run folder.
    states
        Number of cells by state, as planned.
    computed
        Cells computed by this call.
    """

    run: RunFolder
    states: dict[str, int]
    computed: int

    @property
    def complete(self) -> bool:
        """Whether every planned cell is done."""
        return set(self.states) <= {"done"}


def run_study(
    path: Path,
    *,
    executor: Executor = "local",
    out: Path | None = None,
    side_by_side: int = 1,
    cells_a_job: int = CELLS_A_JOB,
    summary: bool = True,
    quiet: bool = False,
) -> Outcome:
    """Run a study on this machine; what is done already is not done again.

    Parameters
    ----------
    path
        Study file.
    executor
        ``local`` (processes) or ``debug`` (inside this process).
    out
        Run folder; default ``runs/NAME``.
    side_by_side
        Processes at a time.
    cells_a_job
        Cells that share one pass over a model.
    summary
        Write tables, figures and report at the end.
    quiet
        No progress.

    Raises
    ------
    UserError
        Before anything is computed: a bad study, a model that is not prepared, a folder of another study, ...
    """
    study = load_study(path)
    folder = out if out is not None else default_folder(study)
    plan = with_extensions(make_plan(study), RunFolder(folder))
    run, unfinished = start(study, plan, folder, quiet=quiet)
    with Reporter(len(plan.cells), len(plan.cells) - len(unfinished), quiet=quiet) as reporter:
        if unfinished:
            inputs = fix_inputs(run, study, plan.cells)
            jobs = packs([cell for cell in unfinished if cell.latency is None], cells_a_job)
            timings = packs([cell for cell in unfinished if cell.latency is not None], cells_a_job)
            if executor == "debug":
                run_in_process(run, inputs, [*jobs, *timings], reporter)
            else:
                run_in_processes(run, inputs, jobs, reporter, side_by_side)
                # Nothing of ours runs beside a timing.
                run_in_processes(run, inputs, timings, reporter)
        if summary and (unfinished or not (run.report / "index.html").exists()):
            reporter.stage("tables, figures and report")
            summarise(run)
    states = Counter(shard_state(run.cell(cell.cell_id), cell.cell_id, verify=False).state for cell in plan.cells)
    counts = {str(state): count for state, count in states.items()}
    return Outcome(run=run, states=counts, computed=len(unfinished))


def start(study: Study, plan: Plan, out: Path | None, *, quiet: bool = False) -> tuple[RunFolder, list[Cell]]:
    """Open the run folder and say which cells are not done.

    Models are checked before the folder is touched, and prepared where that needs no internet.
    """
    folder = out if out is not None else default_folder(study)
    run = RunFolder(folder)
    unfinished = list(plan.cells)
    if run.plan.exists():
        run = open_run(folder, study, plan.cells)
        unfinished = open_cells(run, plan.cells)
    if unfinished:
        prepare_models(study, quiet=quiet)
        run = open_run(folder, study, plan.cells)
    return run, unfinished


def open_cells(run: RunFolder, cells: Sequence[Cell]) -> list[Cell]:
    """Cells whose shard is not whole: missing, failed or damaged."""
    return [cell for cell in cells if shard_state(run.cell(cell.cell_id), cell.cell_id).state != "done"]


def prepare_models(study: Study, *, offline_only: bool = True, quiet: bool = True) -> None:
    """Make sure that every model is there; one error names all that cannot be made without internet."""
    problems = []
    with contextlib.chdir(study.path.parent):
        for model in study.models:
            try:
                if offline_preparable(model.id) or not offline_only:
                    with Reporter(0, 0, quiet=quiet) as reporter:
                        prepare(model.id, model.revision, reporter.stage)
                elif not is_prepared(model.id, model.revision):
                    command = prepare_command(resolve(model.id, model.revision))
                    problems.append(f"{model.id} is not prepared; {command}")
            except UserError as error:
                problems.append(str(error).replace("\n", "\n  "))
    if problems:
        raise UserErrors(f"models of study {study.name}", list(dict.fromkeys(problems)))


def summarise(run: RunFolder) -> None:
    """Tables, figures and report from what is there."""
    from aggregate.api import aggregate_run
    from aggregate.report import write_report

    aggregate_run(run)
    write_report(run)

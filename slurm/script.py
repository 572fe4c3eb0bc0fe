"""Plain sbatch scripts for people: one cell by hand, as a job script is written anywhere else."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from slurm.profile import Profile
from slurm.resources import Resources
from slurm.sbatch import check_folder, script_text
from sparsehpc.core.layout import RunFolder, check_cell_id

#: Ready scripts for use without this command line.
SCRIPTS = Path(__file__).parent / "scripts"


def hand_script(
    run: Path,
    cell_id: str,
    resources: Resources,
    profile: Profile,
    *,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Text for ``sparsehpc script RUN CELL``: ``sbatch`` takes it, and so does ``bash`` inside ``salloc``.

    Parameters
    ----------
    run
        Run folder.
    cell_id
        The cell; its payload is ``python -m jobs cell RUN CELL``.
    resources, profile
        What it asks for, and of which cluster.
    python, environment
        See `slurm.sbatch.sbatch_text`.
    """
    check_folder(run.absolute())
    check_cell_id(cell_id)
    folder = RunFolder(run.absolute())
    logs = {"output": f"{folder.logs}/{cell_id}-%j.out", "error": f"{folder.logs}/{cell_id}-%j.err"}
    command = ["-u", "-m", "jobs", "cell", shlex.quote(str(folder.root)), cell_id]
    return script_text(
        profile.job_for(resources),
        resources,
        f"cell-{cell_id}",
        logs,
        [command],
        python=python,
        environment=environment,
    )


def aggregate_script(
    run: Path,
    name: str,
    folder: Path,
    after: Sequence[str],
    resources: Resources,
    profile: Profile,
    *,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Text of the job that writes tables and report once all arrays have ended, however they ended.

    Parameters
    ----------
    run
        Run folder.
    name
        Job name.
    folder
        Folder of this submission, for logs.
    after
        Ids of the arrays to wait for; ``afterany``, since exit codes of arrays say little and a partial table is
        better than none.
    resources, profile
        What it asks for, and of which cluster.
    python, environment
        See `slurm.sbatch.sbatch_text`.
    """
    check_folder(folder)
    directives: dict[str, str | int | bool] = {"output": f"{folder}/%j_log.out", "error": f"{folder}/%j_log.err"}
    if after:
        directives["dependency"] = f"afterany:{':'.join(after)}"
    root = shlex.quote(str(run.absolute()))
    commands = [["-u", "-m", "jobs", verb, root] for verb in ("aggregate", "report")]
    job = profile.job_for(resources)
    return script_text(job, resources, name, directives, commands, python=python, environment=environment)

"""The exact text of an sbatch script: one function for submitting, dry runs, hand use and golden tests."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slurm.profile import Job, Profile
from slurm.resources import Resources
from slurm.stage import STAGE
from sparsehpc.core.errors import UserError

#: Variables of the submitting side that decide where the job reads from; exported by the script itself,
#: so that it also works where the site's default is ``--export=NONE``.
CARRIED = ("SPARSEHPC_HOME", "HF_HOME")
#: Runs a command that ignores SIGTERM until it handles it itself: a task that is preempted while it still imports would
#: otherwise end by itself, and be taken for failed instead of being started again.
PATIENT = ("sh", "-c", """'trap "" TERM; exec "$@"'""", "sh")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def check_folder(folder: Path) -> None:
    """Refuse a folder whose name Slurm, the shell or submitit would read as something else."""
    if re.search(r"[%\\\x00-\x1f\x7f]", str(folder)):
        raise UserError(
            f"the folder {str(folder)!r} cannot be used: Slurm gives '%' and '\\' in log paths another meaning",
            "choose a folder without '%', '\\' and control characters",
        )


def job_name(text: str) -> str:
    """Make a text fit for ``--job-name``: letters, digits, ``.``, ``_`` and ``-``, at most 64."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:64] or "sparsehpc"


def sbatch_text(
    profile: Profile,
    resources: Resources,
    folder: Path,
    tasks: int,
    name: str,
    *,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Script of an array of ``tasks`` tasks whose payload lies in ``folder``.

    Parameters
    ----------
    profile, resources
        The cluster, and what one task asks for.
    folder
        The submission's folder.
    tasks
        Number of tasks; always an array, so that ids look alike.
    name
        Job name.
    python
        Interpreter where the profile names none; default: the running one.
    environment
        Where `CARRIED` variables are looked up; default: ``os.environ``.
    """
    job = profile.job_for(resources)
    logs = {"output": f"{folder}/%A_%a_0_log.out", "error": f"{folder}/%A_%a_0_log.err"}
    array = {"array": f"0-{tasks - 1}%{min(tasks, job.array_parallelism)}"}
    command = ["-u", "-m", "slurm.task", shlex.quote(str(folder))]
    return script_text(
        job, resources, name, {**array, **logs, "open-mode": "append"}, [command],
        prefix=PATIENT, srun_files=("--output", f"{folder}/%A_%a_%t_log.out", "--error", f"{folder}/%A_%a_%t_log.err"),
        exports={"SUBMITIT_EXECUTOR": "slurm"}, python=python, environment=environment,
    )  # fmt: skip


def script_text(
    job: Job,
    resources: Resources,
    name: str,
    directives: Mapping[str, str | int | bool],
    commands: Sequence[Sequence[str]],
    *,
    prefix: Sequence[str] = (),
    srun_files: Sequence[str] = (),
    exports: Mapping[str, str] | None = None,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Any script of this project: directives, environment, set-up lines, python commands.

    Parameters
    ----------
    job, resources
        The class's habits, and what it asks for.
    name
        Job name.
    directives
        Further directives (array, output, dependency, ...).
    commands
        Of each command the shell words after the interpreter, already quoted; the first failure ends the job.
    prefix
        Shell words before wrapper and interpreter.
    srun_files
        Words that tell srun where output goes.
    exports
        Further variables of this kind of script.
    python, environment
        See `sbatch_text`.
    """
    lines = ["#!/bin/bash"]
    for key, value in sorted({**_asked(job, resources, name), **directives, **job.extra}.items()):
        if key.removeprefix("no-") not in job.unset and value is not False:
            lines.append(f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={_directive(value)}")
    lines += ["", "# environment"]
    variables = {**_environment(resources, os.environ if environment is None else environment), **(exports or {})}
    variables |= {STAGE: "1"} if job.stage_weights else {}
    lines += [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in job.environment.items()]
    # Where the site's default is --export=NONE, srun would start its tasks without any of this.
    lines.append("unset SLURM_EXPORT_ENV")
    if job.setup:
        lines += ["", "# setup", *job.setup]
    lines += ["", "# command"]
    interpreter = _word(job.python) if job.python else shlex.quote(python or sys.executable)
    for number, command in enumerate(commands):
        last = number == len(commands) - 1
        if job.srun:
            start = ["srun", "--unbuffered", *map(shlex.quote, srun_files), *map(_word, job.srun_args)]
        else:
            start = ["exec"] if last else []
        words = [*start, *prefix, *map(_word, job.wrapper), interpreter, *command]
        lines.append(" ".join(words if last else [*words, "|| exit"]))
    return "\n".join(lines) + "\n"


def _asked(job: Job, resources: Resources, name: str) -> dict[str, str | int | bool]:
    asked: dict[str, str | int | bool] = {
        "job-name": job_name(name),
        "time": resources.minutes,
        "nodes": 1,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus,
        # Without srun the batch shell has become the program itself and must get the signal.
        "signal": f"{'' if job.srun else 'B:'}USR2@{job.signal_delay_s}",
        "requeue" if job.requeue else "no-requeue": True,
    }
    if job.memory_by == "mem":
        asked["mem"] = f"{resources.memory_mib}M"
    elif job.memory_by == "mem-per-cpu":
        asked["mem-per-cpu"] = f"{-(-resources.memory_mib // resources.cpus)}M"
    if resources.exclusive:
        asked["exclusive"] = True
    if resources.gpus and job.gpus_by != "none":
        kind = f"{job.gpu_type}:" if job.gpu_type else ""
        asked[job.gpus_by] = f"{'gpu:' if job.gpus_by == 'gres' else ''}{kind}{resources.gpus}"
    for key in ("partition", "account", "qos", "constraint", "exclude", "nodelist", "reservation", "export"):
        if value := getattr(job, key):
            asked[key] = value
    if job.mail_user:
        asked["mail-user"] = job.mail_user
    if job.mail_type:
        asked["mail-type"] = job.mail_type
    return asked


def _environment(resources: Resources, outside: Mapping[str, str]) -> dict[str, str]:
    variables = {
        "PYTHONUNBUFFERED": "1",
        # `python -m` would otherwise import from the folder sbatch was called in.
        "PYTHONSAFEPATH": "1",
        # Nodes work offline; everything was fetched by `sparsehpc prepare`.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(resources.cpus),
        # Slurm 22.05 to 23.02: srun inside a job does not take over --cpus-per-task.
        "SRUN_CPUS_PER_TASK": str(resources.cpus),
    }
    return {**variables, **{key: outside[key] for key in CARRIED if outside.get(key)}}


def _directive(value: str | int) -> str:
    return shlex.quote(str(value))


def _word(text: str) -> str:
    """Quote a checked word of a profile; ``$NAME`` is left to the node's shell."""
    return text if _PLAIN.fullmatch(text) else f'"{text}"'

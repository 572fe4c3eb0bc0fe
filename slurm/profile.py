"""A cluster's habits, one TOML file each, checked: all problems at once, nothing that a shell could misread.

A profile has three tables. ``[limits]`` says how politely to submit, ``[job]`` holds what every job asks for,
``[class.NAME]`` overrides ``[job]`` for one resource class of the study; ``[class.cpu]`` and ``[class.gpu]`` also
serve every class without and with GPUs.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from slurm.resources import Resources

#: Directives this project writes itself; a profile may leave any of them out with ``unset``.
DIRECTIVES = (
    "job-name", "array", "output", "error", "open-mode", "time", "nodes", "ntasks-per-node", "cpus-per-task",
    "mem", "mem-per-cpu", "signal", "requeue", "partition", "account", "qos", "constraint", "exclude", "nodelist",
    "reservation", "mail-user", "mail-type", "gres", "gpus-per-node", "gpus-per-task", "wckey", "export", "exclusive",
)  # fmt: skip
#: Directives that decide where results and logs go: not for ``extra``.
_OURS = frozenset(
    {"job-name", "array", "output", "error", "open-mode", "wrap", "chdir", "parsable", "wait", "test-only"}
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\u0085\u2028\u2029]")
_SHELL = re.compile(r"[;|&<>`\"'\\\n]|\$\(")


def _matching(pattern: str, legal: str) -> AfterValidator:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if value and not compiled.fullmatch(value):
            raise ValueError(f"legal: {legal}")
        return value

    return AfterValidator(check)


def _line(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("legal: one line without control characters")
    if value.lstrip().startswith("#SBATCH"):
        raise ValueError("legal: a shell line; directives go to keys of [job] or to [job.extra]")
    return value


def _word(value: str) -> str:
    if _CONTROL.search(value) or _SHELL.search(value) or not value:
        raise ValueError("legal: one word of a command; variables as $NAME, no quotes, no ; | & < > ` \\ or $(...)")
    return value


def _scalar(value: object) -> object:
    if isinstance(value, bool | int):
        return value
    if not isinstance(value, str) or _CONTROL.search(value):
        raise ValueError("legal: one line of text, a whole number, or true for a flag")
    return value


def _extra_key(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", value):
        raise ValueError("legal: the long name of an sbatch option without dashes before it, as in 'tmp'")
    if value in _OURS:
        raise ValueError("this project sets it itself")
    return value


Name = Annotated[str, _matching(r"[\w.+@/-]+", "letters, digits and . + @ / _ -")]
Names = Annotated[str, _matching(r"[\w.,+-]+", "names joined by commas")]
Hosts = Annotated[str, _matching(r"[\w.,\[\]-]+", "a host list such as node[01-03],node07")]
Features = Annotated[str, _matching(r"[\w.,&|*!:=()\[\]-]+", "features joined by & | and the like")]
Mail = Annotated[str, _matching(r"[\w.+-]+(@[\w.-]+)?", "a mail address")]
MailType = Annotated[str, _matching(r"[A-Z_0-9]+(,[A-Z_0-9]+)*", "types such as END,FAIL")]
Line = Annotated[str, AfterValidator(_line)]
Word = Annotated[str, AfterValidator(_word)]
Variable = Annotated[str, _matching(r"[A-Za-z_]\w*", "the name of an environment variable")]
ExtraKey = Annotated[str, AfterValidator(_extra_key)]
Scalar = Annotated[Any, AfterValidator(_scalar)]
Directive = Literal[DIRECTIVES]  # type: ignore[valid-type]


class Limits(BaseModel):
    """How politely to submit.

    Parameters
    ----------
    max_array_tasks
        Largest job array; the cluster's own MaxArraySize is read live and wins where it is smaller.
    max_queued
        Tasks that may wait or run at once; ``submit`` again tops up. 0: what the cluster allows.
    submit_interval_s
        Seconds between two calls of sbatch.
    sbatch_timeout_s
        Seconds to wait for sbatch before looking for the job by its name.
    poll_interval_s
        Least seconds between two calls of squeue and sacct.
    minutes_per_job
        Cells are packed into jobs of about so many estimated minutes.
    min_minutes
        Least wall time asked for; below 10 minutes submitit takes every interruption for a time-out.
    max_minutes
        Most wall time a job may ask for; 0: no limit known.
    max_memory_gib
        Most memory a job may ask for; 0: no limit known.
    accounting
        Whether ``sacct`` answers; false saves asking.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_array_tasks: int = Field(default=500, ge=1, le=500)
    max_queued: int = Field(default=0, ge=0)
    submit_interval_s: float = Field(default=1.0, ge=0, le=3600)
    sbatch_timeout_s: float = Field(default=120.0, gt=0, le=3600)
    poll_interval_s: float = Field(default=60.0, ge=1, le=86400)
    minutes_per_job: float = Field(default=60.0, gt=0)
    min_minutes: int = Field(default=15, ge=1)
    max_minutes: int = Field(default=0, ge=0)
    max_memory_gib: float = Field(default=0.0, ge=0)
    accounting: bool = True


class Job(BaseModel):
    """What jobs of one class ask for and how they start.

    Parameters
    ----------
    partition, account, qos, constraint, exclude, nodelist, reservation, mail_user, mail_type
        As sbatch's options of these names; empty: left out.
    gpus_by
        Which option asks for GPUs: ``gres`` (``--gres=gpu:TYPE:N``), ``gpus-per-node``, ``gpus-per-task`` or ``none``.
    gpu_type
        Type named in it; empty: any.
    memory_by
        ``mem`` for the whole job, ``mem-per-cpu``, or ``none`` where memory follows from cores.
    signal_delay_s
        Seconds between the warning signal and the end of the wall time.
    requeue
        Whether the scheduler may start the job again after preemption or a node failure.
    export
        sbatch's ``--export``: ``ALL``, ``NONE``, ... ; empty: the site's default. Scripts set all they need.
    array_parallelism
        Tasks of one array that may run at once.
    unset
        Directives to leave out altogether.
    extra
        Further sbatch options, name to value; true for a flag.
    environment
        Variables exported in the job.
    setup
        Shell lines before the command: modules, conda.
    python
        Interpreter on the node; empty: the one that submits.
    wrapper
        Words put before python, such as ``["apptainer", "exec", "image.sif"]``; only the cell is wrapped.
    srun
        Whether the command starts through srun.
    srun_args
        Words for srun.
    stage_weights
        Whether jobs copy the weights they read to node-local space first (`slurm.stage`).
    node_cpus
        CPU cores of a node: what a job that has the node to itself is priced by; 0: not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    partition: Names = ""
    account: Name = ""
    qos: Name = ""
    constraint: Features = ""
    exclude: Hosts = ""
    nodelist: Hosts = ""
    reservation: Names = ""
    mail_user: Mail = ""
    mail_type: MailType = ""
    gpus_by: Literal["gres", "gpus-per-node", "gpus-per-task", "none"] = "gres"
    gpu_type: Name = ""
    memory_by: Literal["mem", "mem-per-cpu", "none"] = "mem"
    signal_delay_s: int = Field(default=90, ge=1, le=65535)
    requeue: bool = True
    export: Annotated[str, _matching(r"[\w,]+", "ALL, NIL, NONE or names joined by commas")] = ""
    array_parallelism: int = Field(default=256, ge=1)
    unset: list[Directive] = Field(default_factory=list)
    extra: dict[ExtraKey, Scalar] = Field(default_factory=dict)
    environment: dict[Variable, Line] = Field(default_factory=dict)
    setup: list[Line] = Field(default_factory=list)
    python: Annotated[str, AfterValidator(lambda value: _word(value) if value else value)] = ""
    wrapper: list[Word] = Field(default_factory=list)
    srun: bool = True
    srun_args: list[Word] = Field(default_factory=list)
    stage_weights: bool = False
    node_cpus: int = Field(default=0, ge=0)


class Profile(BaseModel):
    """One cluster.

    Parameters
    ----------
    name
        The file's name without its ending.
    description
        One line for people.
    limits, job
        See `Limits` and `Job`.
    classes
        Overrides of ``job`` by resource class, as far as they were written (table ``[class.NAME]``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    name: Name = "unnamed"
    description: Line = ""
    limits: Limits = Field(default_factory=lambda: Limits())
    job: Job = Field(default_factory=lambda: Job())
    classes: dict[Name, Job] = Field(default_factory=dict, alias="class")

    def job_for(self, resources: Resources) -> Job:
        """Keys of ``[job]``, then of ``[class.cpu]`` or ``[class.gpu]``, then of the class's own table."""
        values = {key: getattr(self.job, key) for key in Job.model_fields}
        device = "gpu" if resources.gpus else "cpu"
        for name in dict.fromkeys((device, resources.name)):
            # A class that is called "cpu" and asks for GPUs gets what GPU jobs get: these two names are for devices.
            if name in self.classes and (name == device or name not in ("cpu", "gpu")):
                override = self.classes[name]
                values.update({key: getattr(override, key) for key in override.model_fields_set})
        return Job(**values)

    def excluding(self, nodes: str) -> Profile:
        """Return the same profile with further nodes left out of every job."""
        if not nodes:
            return self

        def add(job: Job) -> Job:
            return job.model_copy(update={"exclude": ",".join(filter(None, (job.exclude, nodes)))})

        classes = {k: add(job) if "exclude" in job.model_fields_set else job for k, job in self.classes.items()}
        return self.model_copy(update={"job": add(self.job), "classes": classes})

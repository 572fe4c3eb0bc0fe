"""From a profile and resources to a submitit executor: the same callable in process, in processes and on Slurm.

submitit moves one pickle a task into place after sbatch has accepted a job. Here everything a task needs is written
before sbatch is called (one pickle an array), so that the call is the single step that either happened or did not.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.core import utils as submitit_utils

from slurm import sbatch
from slurm.own import make_folder, open_file, write_file
from slurm.profile import Profile
from slurm.resources import Resources
from slurm.task import PAYLOAD
from sparsehpc.core.errors import SparseHPCError, UserError, unknown

Kind = Literal["local", "debug", "slurm"]
KINDS: tuple[Kind, ...] = ("local", "debug", "slurm")

#: Time-outs after which submitit gives a task up; every one but the last is requeued.
MAX_TIMEOUTS = 3
SCRIPT = "submit.sh"
_JOB_ID = re.compile(r"Submitted batch job (\d+)|^(\d+)(?:;\S+)?$", re.MULTILINE)


class SubmissionRefused(UserError):
    """sbatch said no; nothing was accepted as far as it told."""


class SubmissionUnclear(SparseHPCError):
    """sbatch did not answer, or its answer makes no sense: the job may be there, look it up by name."""


def make_executor(
    kind: str, folder: Path, resources: Resources, profile: Profile | None = None, name: str = "sparsehpc"
) -> submitit.Executor:
    """Build the executor for one resource class.

    Parameters
    ----------
    kind
        ``local`` (a process a job), ``debug`` (in this process) or ``slurm``.
    folder
        Folder of this submission: pickles, scripts, logs. Each array needs a fresh one.
    resources
        What one job asks for.
    profile
        The cluster; needed for ``slurm``.
    name
        Job name; unique per submission, so that a job can be found again by it.

    Returns
    -------
    submitit.Executor
        ``submit``, ``submit_array`` and ``map_array`` as in submitit.
    """
    folder = folder.absolute()
    sbatch.check_folder(folder)
    if kind == "debug":
        make_folder(folder)
        return submitit.DebugExecutor(folder)
    if kind == "local":
        make_folder(folder)
        executor = LocalExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(timeout_min=resources.minutes, gpus_per_node=resources.gpus, signal_delay_s=30)
        return executor
    if kind == "slurm":
        if profile is None:
            raise UserError("the slurm executor needs a profile", "sparsehpc submit STUDY --profile NAME")
        return ClusterExecutor(folder, resources, profile, name)
    raise UserError(unknown("executor", kind, KINDS))


def write_payload(folder: Path, calls: Sequence[submitit_utils.DelayedSubmission]) -> None:
    """Write what the tasks of a submission run: for the owner's eyes only, one file for all of them."""
    write_file(folder / PAYLOAD, b"", mode=0o600)
    submitit_utils.cloudpickle_dump(list(calls), folder / PAYLOAD)


class LocalExecutor(submitit.LocalExecutor):  # type: ignore[misc]
    """submitit's processes of this machine; they unpickle the checked payload (`slurm.task`) as cluster jobs do."""

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join([sys.executable, "-u", "-m", "slurm.task", str(self.folder)])

    def _internal_process_submissions(
        self, delayed_submissions: Sequence[submitit_utils.DelayedSubmission]
    ) -> list[submitit.LocalJob[Any]]:
        [call] = delayed_submissions  # a folder a job
        call.set_timeout(self.parameters["timeout_min"], self.max_num_timeout)
        write_payload(self.folder, [call])
        return [self._submit_command(self._submitit_command_str)]


class ClusterExecutor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's Slurm executor with our script, one payload an array, and a scrubbed environment.

    Parameters
    ----------
    folder
        Fresh folder of this submission.
    resources, profile, name
        See `make_executor`.
    """

    def __init__(self, folder: Path, resources: Resources, profile: Profile, name: str) -> None:
        if not self.affinity() > 0:
            raise UserError(
                "no sbatch and srun on this machine", "sparsehpc testbed up starts a private cluster to try things on"
            )
        super().__init__(folder, max_num_timeout=MAX_TIMEOUTS)
        self.resources, self.profile, self.job_name = resources, profile, name
        self.parameters["time"] = resources.minutes

    def _internal_update_parameters(self, **kwargs: Any) -> None:
        raise UserError(f"parameters {sorted(kwargs)} of a cluster job come from the profile and the resource class")

    def prepare(self, calls: Sequence[submitit_utils.DelayedSubmission]) -> Path:
        """Write payload and script of one array into the folder; return the script's path. Nothing is submitted."""
        if len(calls) > self.profile.limits.max_array_tasks:
            raise SparseHPCError(f"an array of {len(calls)} tasks; split it first (slurm.limits.split)")
        if (self.folder / PAYLOAD).exists():
            raise SparseHPCError(f"{self.folder} already holds a submission; every array needs a fresh folder")
        make_folder(self.folder)
        for call in calls:
            call.set_timeout(self.resources.minutes, self.max_num_timeout)
        write_payload(self.folder, calls)
        script: Path = self.folder / SCRIPT
        text = sbatch.sbatch_text(self.profile, self.resources, self.folder, len(calls), self.job_name)
        write_file(script, text.encode())
        return script

    def send(self, script: Path) -> str:
        """Call sbatch; see `call_sbatch`."""
        return call_sbatch(script, self.profile.limits.sbatch_timeout_s)

    def _internal_process_submissions(
        self, delayed_submissions: Sequence[submitit_utils.DelayedSubmission]
    ) -> list[submitit.SlurmJob[Any]]:
        job_id = self.send(self.prepare(delayed_submissions))
        return [
            submitit.SlurmJob(folder=self.folder, job_id=f"{job_id}_{task}") for task in range(len(delayed_submissions))
        ]


def call_sbatch(script: Path, timeout_s: float) -> str:
    """Call sbatch; return the job's id.

    sbatch reads the script that was opened and checked here, not whatever bears its name by then.

    Raises
    ------
    SubmissionRefused
        sbatch failed with a message; or the script is not this user's own, or others could have changed it.
    SubmissionUnclear
        sbatch did not answer in time or said nothing that makes sense.
    """
    try:
        with open_file(script) as file:
            answer = subprocess.run(
                ["sbatch"],
                stdin=file,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                env=submit_environment(os.environ),
                check=False,
            )
    except FileNotFoundError as error:
        raise SubmissionRefused("there is no sbatch on this machine") from error
    except SparseHPCError as error:
        raise SubmissionRefused(str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise SubmissionUnclear(f"sbatch did not answer within {error.timeout:.0f} s") from error
    found = _JOB_ID.search(answer.stdout)
    if answer.returncode == 0 and found:
        return found.group(1) or found.group(2)
    said = "\n".join(part.strip() for part in (answer.stderr, answer.stdout) if part.strip())
    if answer.returncode == 0:
        raise SubmissionUnclear(f"sbatch ended well but its answer has no job id: {said!r}")
    raise SubmissionRefused(f"sbatch refused {script} (exit status {answer.returncode}): {said or 'no message'}")


def submit_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment for sbatch without what an enclosing job put there.

    ``SLURM_CONF`` and the ``SBATCH_*`` defaults a user set on purpose stay.
    """
    return {
        key: value
        for key, value in environment.items()
        if not key.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_"))
        or key in ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    }

"""``sparsehpc doctor --profile``: one small job a class says whether its nodes can do the work."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.doctor import Check
from slurm import checks
from slurm.answers import parse_squeue
from slurm.causes import read_tail
from slurm.executor import SCRIPT, call_sbatch
from slurm.limits import ask
from slurm.own import make_folder, write_file
from slurm.profile import Profile
from slurm.resources import Resources
from slurm.sbatch import check_folder, script_text
from sparsehpc.core.errors import UserError
from sparsehpc.core.provenance import machine, software

#: Clocks may differ by so much, waiting for the answer included, before file times mislead.
_CLOCK_S = 90.0
_POLL_S = 1.0
#: What kernels use, of what processors say they have.
_FAST = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")


def classes(profile: Profile) -> list[Resources]:
    """Small resource classes that a profile can be tried with."""
    small = [Resources(name="cpu", cpus=2, memory_gib=2, minutes=5)]
    if "gpu" in profile.classes:
        small.append(Resources(name="gpu", cpus=2, memory_gib=2, minutes=5, gpus=1))
    return small


def check_profile(
    profile: Profile, resources: Resources, folder: Path, *, wait_s: float, report: Callable[[str], object]
) -> list[Check]:
    """Submit one job, wait for it, and judge what it found.

    Parameters
    ----------
    profile, resources
        The cluster, and the class to try.
    folder
        Folder on the shared disk to work in; emptied afterwards.
    wait_s
        Longest wait; the job is cancelled then.
    report
        Called with lines for people.
    """
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine", "run it on the cluster's login node")
    place = (folder / f".sparsehpc-doctor-{uuid.uuid4().hex[:8]}").absolute()
    check_folder(place)
    try:
        make_folder(place)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}", "choose a shared folder to run it in"
        ) from error
    try:
        text = script_text(
            profile.job_for(resources),
            resources,
            f"sparsehpc-doctor-{resources.name}",
            {"output": f"{place}/log", "error": f"{place}/log"},
            [["-u", "-m", "slurm.checks", shlex.quote(str(place))]],
        )
        write_file(place / SCRIPT, text.encode())
        job_id = call_sbatch(place / SCRIPT, profile.limits.sbatch_timeout_s)
        report(f"job {job_id} of class {resources.name}; waiting")
        found = _wait(place, job_id, wait_s, max(_POLL_S, min(10.0, profile.limits.poll_interval_s)))
        if isinstance(found, str):
            return [
                Check(f"{resources.name}: job {job_id}", "wrong", found, "the profile's keys decide what it asks for")
            ]
        return list(_judge(found, resources))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _wait(place: Path, job_id: str, wait_s: float, poll_s: float) -> dict[str, Any] | str:
    """What the job found, or why there is nothing."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        os.listdir(place)  # noqa: PTH208 - listing makes NFS show what a node wrote
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((place / checks.RESULT).read_text(encoding="utf-8"))
            return found
        text = ask(["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%F|%K|%j|%T|%r|%N"])
        states = list(parse_squeue(text).values()) if text is not None else []
        if (text is not None or states) and not any(state.active for state in states):
            time.sleep(2.0)  # the file may show a moment later
            if not (place / checks.RESULT).exists():
                word = states[0].state if states else "gone from the queue"
                return f"{word}; it said: {read_tail(place / 'log', 5) or 'nothing'}"
        time.sleep(poll_s)
    ask(["scancel", job_id])
    return f"it did not start and end within {wait_s:.0f} s and was cancelled"


def _judge(found: dict[str, Any], asked: Resources) -> Iterator[Check]:
    where = f"{asked.name} node"
    broken = {name: words for name, words in found["imports"].items() if words}
    if broken:
        words = "; ".join(f"{name}: {why}" for name, why in broken.items())
        yield Check(f"{where}: imports", "wrong", words, "set 'python', 'setup' or 'wrapper' in the profile")
    else:
        yield Check(f"{where}: imports", "ok", ", ".join(found["imports"]))
    here, there = software(), found["software"]
    differing = [key for key in ("sparsehpc", "code_digest", "python") if here[key] != there[key]]
    differing += [name for name, version in here["versions"].items() if there["versions"].get(name) != version]
    if differing:
        yield Check(
            f"{where}: versions", "wrong", f"other than here: {', '.join(differing)}", "use one environment for both"
        )
    else:
        yield Check(
            f"{where}: versions", "ok", f"as here: Python {there['python']}, torch {there['versions'].get('torch')}"
        )
    yield _processor(found["machine"], where)
    if found["affinity"] < asked.cpus:
        advice = "some Slurms drop --cpus-per-task inside srun: set srun_args = ['--cpus-per-task=N'] in the profile"
        yield Check(f"{where}: cores", "wrong", f"{found['affinity']} usable, {asked.cpus} asked", advice)
    elif found["affinity"] > asked.cpus:
        detail = (
            f"{found['affinity']} usable, {asked.cpus} asked: jobs are not bound to cores; threads follow the request"
        )
        yield Check(f"{where}: cores", "note", detail)
    else:
        yield Check(f"{where}: cores", "ok", f"{found['affinity']} usable, as asked")
    node = found["machine"]
    if node.get("physical_cores", node["cores_usable"]) < node["cores_usable"]:
        yield Check(
            f"{where}: threads of cores",
            "note",
            f"{node['cores_usable']} usable CPUs are {node['physical_cores']} cores, shared by threads: slower than "
            "the number of CPUs promises",
            'extra = { hint = "nomultithread" } in the profile asks for whole cores',
        )
    if asked.gpus and len(found["gpus"]) != asked.gpus:
        detail = f"torch sees {len(found['gpus'])}, {asked.gpus} asked; CUDA_VISIBLE_DEVICES={found['visible']}"
        yield Check(
            f"{where}: GPUs", "wrong", detail, "check gpus_by and gpu_type, the driver, and that torch is a CUDA build"
        )
    elif asked.gpus:
        yield Check(f"{where}: GPUs", "ok", ", ".join(found["gpus"]))
    if found["write"]:
        yield Check(f"{where}: this folder", "wrong", found["write"], "runs need a folder that nodes can write: --out")
    else:
        yield Check(f"{where}: this folder", "ok", "written, renamed, removed")
    yield Check(f"{where}: scratch", "ok", found["scratch"])
    skew = found["time"] - time.time()
    if abs(skew) > _CLOCK_S:
        yield Check(
            f"{where}: clock",
            "note",
            f"differs by {skew:.0f} s from here",
            "tell your site; results do not depend on it",
        )
    else:
        yield Check(f"{where}: clock", "ok", "agrees with this machine's")


def _processor(node: dict[str, Any], where: str) -> Check:
    """The node's processor, and what it lacks of this machine's: kernels are compiled where they are installed."""
    features = set(node["cpu_features"])
    here = machine()
    words = f"{node['cpu_model']}; {' '.join(name for name in _FAST if name in features) or 'no vector extensions'}"
    lacking = [name for name in _FAST if name in here["cpu_features"] and name not in features]
    if not lacking:
        return Check(f"{where}: processor", "ok", words)
    return Check(
        f"{where}: processor",
        "note",
        f"{words}; lacks what this machine has: {' '.join(lacking)}",
        "kernels are chosen on the node, so that it works, slower; timings do not compare with this machine's",
    )

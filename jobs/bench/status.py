"""Status of a large run: how long ``sparsehpc status`` takes, and how often it asks the scheduler, on a real Slurm.

The run has a shard for 19 of 20 cells; the rest waits in a held job array, of which squeue and sacct know every task.
Without the option ``profile`` a private cluster is started and ended.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.bench import Row
from jobs.bench._aggregate_shards import make_shards
from jobs.bench._cluster import cluster, folder
from jobs.bench.dispatch import Nothing
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder

DEFAULTS = {"cells": "10000", "pack": "20", "profile": "", "repeats": "5", "dir": ""}
#: One cell in so many is not done.
_OPEN = 20
_COMMANDS = ("squeue", "sacct", "scontrol", "sinfo", "sacctmgr", "sbatch")


def run(options: Mapping[str, str]) -> list[Row]:
    """Measure; options: ``cells``, ``pack``, ``profile``, ``repeats``, ``dir`` (a folder that nodes see)."""
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise UserError(f"suite status has no option {unknown[0]!r}; legal: {', '.join(DEFAULTS)}")
    values = {**DEFAULTS, **options}
    cells, pack, repeats = (int(values[key]) for key in ("cells", "pack", "repeats"))
    with cluster(values["profile"], tasks=-(-cells // pack)) as profile, folder(values["dir"]) as place:
        made, jobs, names = _make(place / "run", cells, pack, profile)
        asked, path = _counting(place / "bin")
        ours, bare, calls, peaks = list[float](), list[float](), list[int](), list[float]()
        try:
            for _ in range(repeats):
                (made.submissions / "queue.json").unlink(missing_ok=True)
                asked.write_text("")
                seconds, peak = _status(made, cells, {**os.environ, "PATH": path})
                ours.append(seconds)
                peaks.append(peak)
                calls.append(len(asked.read_text().splitlines()))
                bare.append(_bare(names))
        finally:
            subprocess.run(["scancel", *jobs], check=False)
    return [
        {
            "suite": "status",
            "work": f"status of {cells} cells, {cells - cells // _OPEN} of them done, in {-(-cells // pack)} tasks",
            "baseline": "squeue and sacct alone",
            "ratio": statistics.median(bare) / statistics.median(ours),
            "seconds": statistics.median(ours),
            "seconds_high": max(ours),
            "baseline_seconds": statistics.median(bare),
            "scheduler_calls": max(calls),
            "peak_rss_mib": max(peaks),
            "repeats": repeats,
        }
    ]


def _make(root: Path, cells: int, pack: int, profile: Any) -> tuple[RunFolder, list[str], str]:
    """Run folder, and the arrays that hold its cells: ids, and names joined as squeue takes them."""
    from submitit.core.utils import DelayedSubmission

    from jobs.plan_file import planned_ids
    from slurm.executor import ClusterExecutor
    from slurm.ledger import new_submission
    from slurm.limits import array_tasks, read_limits, split
    from slurm.queue import Queue
    from slurm.resources import Resources
    from slurm.send import send

    run = make_shards(root, cells, 1)
    ids = planned_ids(run.plan)
    for cell_id in ids[::_OPEN][: cells // _OPEN]:
        shutil.rmtree(run.cell(cell_id).root)
    held = profile.model_copy(update={"job": profile.job.model_copy(update={"extra": {"hold": True}})})
    resources = Resources(memory_gib=0.5, minutes=15)
    queue = Queue(run.submissions)
    packs = [tuple(ids[start : start + pack]) for start in range(0, cells, pack)]
    sent = []
    for tasks in split(packs, array_tasks(profile.limits, read_limits(profile))):
        submission = new_submission(
            "status", tasks=tuple(tasks), resources=dataclasses.asdict(resources), profile=profile.name
        )
        executor = ClusterExecutor(submission.folder(run), resources, held, submission.job_name)
        script = executor.prepare([DelayedSubmission(Nothing(task)) for task in tasks])
        sent.append(send(run, submission, script, queue, profile.limits, lambda text: None))
    time.sleep(5)  # the database learns of them a while after the queue
    return run, [item.job_id for item in sent], ",".join(item.job_name for item in sent)


def _counting(place: Path) -> tuple[Path, str]:
    """Commands of the scheduler that write a line each time they are called, and the PATH that finds them first."""
    place.mkdir(parents=True, exist_ok=True)
    asked = place / "asked"
    for name in _COMMANDS:
        real = shutil.which(name)
        if real is not None:
            quoted = shlex.quote(str(asked))
            (place / name).write_text(f'#!/bin/sh\necho {name} >>{quoted}\nexec {shlex.quote(real)} "$@"\n')
            (place / name).chmod(0o755)
    return asked, os.pathsep.join([str(place), os.environ.get("PATH", os.defpath)])


def _status(run: RunFolder, cells: int, environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds and peak MiB of the command, as a person calls it."""
    words = [sys.executable, "-m", "jobs", "status", str(run.root)]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(words, stdout=output, env=environment)
        _, code, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
        seconds = time.perf_counter() - started
        output.seek(0)
        said = output.read()
    # planned, done, running, queued
    row = next((line.split()[1:5] for line in said.splitlines() if line.startswith("all ")), [])
    if row != [str(cells), str(cells - cells // _OPEN), "0", str(cells // _OPEN)] or process.returncode:
        raise UserError(f"status says something else than what there is: {said}")
    return seconds, used.ru_maxrss / 1024


def _bare(names: str) -> float:
    """Seconds of the two questions that any answer needs."""
    started = time.perf_counter()
    for words in (["squeue", "--noheader", "--array", "--states=all"], ["sacct", "--noheader", "--parsable2"]):
        subprocess.run([*words, f"--name={names}"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started

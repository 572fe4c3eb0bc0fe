"""Tiny studies for tests on a real Slurm, and what looks at their jobs and tables."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from slurm.testbed import Testbed

STUDY = """\
[study]
name = "tiny"
seed = 7

[[models]]
id = "random:model"
resource = "small"

[grid]
methods = ["magnitude", "random"]
sparsities = {sparsities}
variants = ["masked", "csr"]

[evaluation]
corpus = "lines:texts.txt"
windows = 3
window_tokens = 24

[resources.small]
cpus = 1
memory_gib = 1
minutes = 15
"""
#: Tables beside the first for a study of every method and every format.
EVERYTHING = """
[[grid]]
methods = ["magnitude-layerwise", "magnitude-rowwise"]
sparsities = [0.35, 0.65]
variants = [
    "auto", "auto-size", "bitmap", "bitmap-int8", "bitmap-q4", "csc", "csr-int64", "csr16",
    "dense", "dense-bf16", "dense-int8", "dense-q4",
]

[[grid]]
methods = ["admm", "ria", "sparsegpt", "wanda"]
patterns = ["unstructured", "2:4"]
sparsities = [0.5]
variants = ["bitmap", "nm"]

[[grid]]
methods = ["magnitude-layerwise", "wanda"]
patterns = ["block8x8"]
sparsities = [0.5]
variants = ["masked", "bsr"]

[[grid]]
methods = ["block-influence", "flap", "wanda"]
patterns = ["layers", "heads", "neurons"]
sparsities = [0.5]
variants = ["masked", "compact"]

[calibration]
corpus = "lines:more.txt"
windows = 4
window_tokens = 16
"""
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
TEXTS = "The mill stands by the river.\nSeven geese crossed the road at noon.\nA letter came, late and wet.\n"
#: What may differ between two runs of a study: when, where and how fast it ran.
NOT_COMPARED = ("costs",)


def write_study(folder: Path, cells: str, changes: dict[str, str] | None = None) -> Path:
    """A study of 9 cells (``few``), or of 204 with every method and every format (``many``)."""
    count = {"few": 2, "many": 36}[cells]
    text = STUDY.replace("{sparsities}", str([round(0.9 * (n + 1) / count, 3) for n in range(count)]))
    if cells == "many":
        text = text.replace("[grid]", "[[grid]]") + EVERYTHING
        days = (f"On day {n} the baker sold {7 * n} loaves and kept one.\n" for n in range(8))
        (folder / "more.txt").write_text("".join(days))
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{cells}{'-'.join((changes or {}).values()).replace(' ', '')}.toml"
    path.write_text(text)
    return path


def read_tables(run: Path) -> dict[str, bytes]:
    """Bytes of every table that two runs of a study must share."""
    from aggregate.api import aggregate_run
    from sparsehpc.core.layout import RunFolder

    aggregate_run(RunFolder(run), figures=False)
    return {
        path.name: path.read_bytes() for path in sorted((run / "tables").iterdir()) if path.stem not in NOT_COMPARED
    }


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command line call came to."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def task_processes(job_id: str) -> list[tuple[int, int]]:
    """Process ids of an array's running tasks, with their index: the Python that computes cells.

    Of this test session's cluster alone: others on this machine number their jobs alike.
    """
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"slurm.task" in (entry / "cmdline").read_bytes():
                values = dict(
                    pair.split(b"=", 1) for pair in (entry / "environ").read_bytes().split(b"\0") if b"=" in pair
                )
                here = values.get(b"SLURM_CONF", b"").decode() == os.environ["SLURM_CONF"]
                ours = values.get(b"SLURM_ARRAY_JOB_ID", b"").decode() == job_id and b"SLURM_PROCID" in values
                if here and ours and not (entry / "cmdline").read_bytes().startswith(b"srun"):
                    found.append((int(entry.name), int(values[b"SLURM_ARRAY_TASK_ID"])))
    return found


def caught(
    job_id: str, tasks: int, timeout_s: float = 120.0, when: Callable[[], bool] = lambda: True
) -> dict[int, int]:
    """Stop every task of an array as soon as it is there; process id by index. SIGCONT lets one go on.

    With ``when``: as soon as that is true, too.
    """
    held: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(held) < tasks:
        for pid, task in task_processes(job_id):
            if task not in held and when():
                os.kill(pid, signal.SIGSTOP)
                held[task] = pid
        assert time.monotonic() < deadline, f"{len(held)} of {tasks} tasks of job {job_id} were seen"
        time.sleep(0.02)
    return held


def hold_to_the_end(pid: int) -> None:
    """Keep a stopped process stopped whatever wakes it, until somebody kills it: Slurm lets it end in peace first."""
    with contextlib.suppress(ProcessLookupError):
        while state_letter(pid) not in ("", "Z"):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.01)


def signal_waits(pid: int, number: signal.Signals) -> bool:
    """Whether a stopped process will get a signal as soon as it goes on; also where it did and is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def state_letter(pid: int) -> str:
    """State of a process as /proc says it: ``T`` is stopped; empty where there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def slurm(*command: str) -> str:
    """Run one of Slurm's commands; its output."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
    return answer.stdout


@contextlib.contextmanager
def lost_node(bed: Testbed, node: str, patience_s: float) -> Iterator[None]:
    """A node whose slurmd died and that Slurm holds for DOWN; it is back afterwards.

    Slurm notices by itself after its timeouts, which a busy machine stretches; when patience ends, the operator
    says it.
    """
    bed.stop(f"slurmd-{node}", signal.SIGKILL)
    try:
        patient_until = time.monotonic() + patience_s
        # sinfo may call a node "completing" for as long as its jobs end, whatever else is true of it.
        while "State=DOWN" not in (found := slurm("scontrol", "show", "node", node)):
            waited_s = time.monotonic() - patient_until
            assert waited_s < 60, f"{node} is not down: {found}"
            if waited_s > 0:
                slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
            time.sleep(0.3)
        yield
    finally:
        bed.start(f"slurmd-{node}")
        bed.wait_for_nodes(60)


def ended(job_id: str) -> bool:
    """Whether accounting has the end of every task of a job and of its steps; also where accounting is down.

    The database learns of both a while after the queue does: how long depends on the machine.
    """
    words = ["sacct", "-nPj", job_id, "-o", "JobID,State"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return True
    states = [line.split("|") for line in answer.stdout.splitlines()]
    open_states = ("RUNNING", "PENDING", "REQUEUED", "SUSPENDED")
    return answer.returncode != 0 or (bool(states) and not any(state.startswith(open_states) for _, state in states))


def cannot(words: str, right: str = "") -> NoReturn:
    """Skip a test for something that is missing, and say so; where the cluster tests are required, it fails instead.

    Without the right that it takes (a capability of the kernel), it is skipped all the same: nothing is missing then
    that could be installed.
    """
    bit = {"CAP_CHOWN": 0, "CAP_SYS_ADMIN": 21}.get(right)
    status = Path("/proc/self/status").read_text()
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    if os.environ.get("SPARSEHPC_REQUIRE_CLUSTER") and (bit is None or held >> bit & 1):
        pytest.fail(words)
    pytest.skip(words)


def memory_disk() -> str:
    """Where the cluster's databases need not wait for a busy disk, if that is large enough and programs may start."""
    with contextlib.suppress(OSError):
        found = os.statvfs("/dev/shm")
        if found.f_bavail * found.f_frsize > 2 << 30 and not found.f_flag & (os.ST_NOEXEC | os.ST_RDONLY):
            return "/dev/shm"
    return "/tmp"

"""A private Slurm for the session: real daemons, real jobs; and a study whose cells are real, but tiny."""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_tools import CONFIG, TEXTS, Answer, cannot, ended, memory_disk, read_tables, write_study

from slurm.ledger import read_ledger
from slurm.queue import CACHE
from slurm.testbed import Testbed, missing_packages
from sparsehpc.core.layout import RunFolder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("cluster")
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def bed() -> Iterator[Testbed]:
    """The cluster, with ``SLURM_CONF`` set for the session."""
    if lacking := missing_packages():
        cannot(f"no Slurm to test on; as root: apt-get install -y {' '.join(lacking)}")
    with (
        tempfile.TemporaryDirectory(prefix="shpc-", dir=memory_disk()) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(folder).chmod(0o711)  # munge wants its clients to reach the socket
        cluster = Testbed(Path(folder) / "bed")
        cluster.up()
        try:
            for key, value in cluster.environment().items():
                patch.setenv(key, value)
            yield cluster
        finally:
            cluster.down()


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SPARSEHPC_HOME and profiles of the session; never the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEHPC_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield Path(os.environ["SPARSEHPC_HOME"])


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Wait until something is true, or fail with words."""

    def wait(ready: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() > deadline:
                pytest.fail(f"after {timeout_s:.0f} s still not: {what}")
            time.sleep(0.2)

    return wait


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    (folder / "texts.txt").write_text(TEXTS)
    return folder


@pytest.fixture(scope="session")
def few(study_folder: Path) -> Path:
    """Study of 9 cells."""
    return write_study(study_folder, "few")


@pytest.fixture(scope="session")
def undisturbed(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, bytes]]:
    """Tables of a study that nothing disturbed: computed in this process, once a study."""
    known: dict[Path, dict[str, bytes]] = {}

    def tables(study: Path) -> dict[str, bytes]:
        if study not in known:
            from jobs.run import run_study

            before = dict(os.environ)
            out = tmp_path_factory.mktemp("undisturbed") / "run"
            outcome = run_study(study, executor="debug", out=out, quiet=True, cells_a_job=50)
            os.environ.clear()
            os.environ.update(before)
            assert outcome.complete
            known[study] = read_tables(out)
        return known[study]

    return tables


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Call the command line as ``main`` does, in this process."""

    def call(*words: str | Path) -> Answer:
        from jobs.cli import main

        monkeypatch.setattr("sys.argv", ["sparsehpc", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return call


@pytest.fixture
def status(cli: Callable[..., Answer]) -> Callable[[Path], dict]:
    """``sparsehpc status RUN --json``."""

    def look(run: Path) -> dict:
        answer = cli("status", run, "--cells", "--json")
        assert answer.code == 0, answer.said
        return json.loads(answer.out)

    return look


@pytest.fixture
def settled(status: Callable[[Path], dict], wait_for: Callable[..., None]) -> Callable[..., dict]:
    """Wait until nothing of a run waits or runs."""

    def wait(run: Path, timeout_s: float = 240.0) -> dict:
        last: dict = {}

        def ready() -> bool:
            last.update(status(run))
            # A job whose cells are done may still be on its way out.
            return not (last["cells"]["running"] or last["cells"]["queued"] or last["jobs_active"])

        def accounted(run: Path) -> bool:
            return all(item.fate != "accepted" or ended(item.job_id) for item in read_ledger(RunFolder(run))[0])

        wait_for(ready, f"end of all jobs of {run}", timeout_s)
        until = time.monotonic() + 10  # a record that was open when the database went away is never closed
        while not accounted(run) and time.monotonic() < until:
            time.sleep(0.3)
        try:
            (run / "submissions" / CACHE).unlink(missing_ok=True)
        except OSError:  # a folder that is read-only: until the answer is too old
            time.sleep(2.5)
        return status(run)

    return wait


@pytest.fixture
def finish(cli: Callable[..., Answer], settled: Callable[..., dict]) -> Callable[..., dict]:
    """Retry until every cell is done; every round must say why, and what to do next."""

    def repeat(run: Path, *words: str, rounds: int = 6) -> dict:
        for _ in range(rounds):
            found = settled(run)
            if found["cells"]["done"] == found["cells"]["expected"]:
                return found
            assert all(
                state["state"] == "done" or state["cause"] or state["reason"] for state in found["states"].values()
            )
            advice = f"next: sparsehpc status {run} --failed says why; sparsehpc retry {run} sends them again"
            said = cli("status", run).out
            assert advice in said, said
            failed = [cell for cell, state in found["states"].items() if state["state"] == "failed"]
            for cell in failed[:1]:
                said = cli("logs", run, cell).out
                assert f"next: sparsehpc retry {run}" in said, said
            answer = cli("retry", run, "--yes", "--no-aggregate", *words)
            assert answer.code == 0, answer.said
        pytest.fail(f"not complete after {rounds} retries: {found['cells']} {found['failed_by_cause']}")

    return repeat


@pytest.fixture
def profile(write_profile: Callable[..., str]) -> Callable[..., str]:
    """See `write_profile`."""
    return write_profile


@pytest.fixture(scope="session")
def write_profile(home: Path) -> Callable[..., str]:
    """Write a profile like ``testbed`` with further lines into the user's folder; its name."""
    from slurm.profile_file import user_folder

    def write(job: str = "", limits: str = "", interval_s: float = 0.0, timeout_s: float = 20.0) -> str:
        path = user_folder() / f"own-{uuid.uuid4().hex[:6]}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"[limits]\nsubmit_interval_s = {interval_s}\npoll_interval_s = 2.0\nsbatch_timeout_s = {timeout_s}\n"
            f"{limits}\n[job]\naccount = 'testbed'\nsignal_delay_s = 30\n{job}\n"
        )
        return path.stem

    return write

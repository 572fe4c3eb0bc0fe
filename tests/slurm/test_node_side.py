import os
import pickle
import stat
import subprocess
import sys

import pytest

from slurm import node, task
from slurm.causes import classify
from slurm.executor import SubmissionRefused, call_sbatch, make_executor, submit_environment
from slurm.resources import Resources
from sparsehpc.core.errors import SparseHPCError, UserError


def test_scratch_falls_back_along_the_chain(tmp_path):
    good, closed = tmp_path / "good", tmp_path / "gone"
    good.mkdir()
    chain = {"SPARSEHPC_SCRATCH": str(closed), "SLURM_TMPDIR": "", "TMPDIR": str(good)}
    assert node.scratch_folder(chain) == good
    assert node.scratch_folder({}).is_dir()


def test_a_job_has_its_own_folder_and_caches_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEHPC_SCRATCH", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    with node.node_local_folders() as folder:
        assert folder.parent == tmp_path
        assert os.environ["TMPDIR"] == str(folder)
        assert os.environ["TRITON_CACHE_DIR"].startswith(str(folder))
    assert list(tmp_path.iterdir()) == []
    assert os.environ["TRITON_CACHE_DIR"] == "/somewhere"


def test_leftovers_of_killed_jobs_are_swept_and_living_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEHPC_SCRATCH", str(tmp_path))
    dead = tmp_path / f"sparsehpc-{os.getuid()}-dead"
    dead.mkdir()
    (dead / ".lock").touch()
    with node.node_local_folders() as alive:
        assert not dead.exists()
        with node.node_local_folders():
            assert alive.exists()


STUBBORN = """
import os, signal, sys, time
class Stubborn:
    def __call__(self):
        for _ in range(3):
            try:
                os.kill(os.getpid(), signal.SIGUSR2)
                time.sleep(0.1)
            except Exception:
                sys.stderr.write("swallowed\\n")
        return 1
    def checkpoint(self):
        from submitit.helpers import DelayedSubmission
        return DelayedSubmission(self)
from pathlib import Path
from submitit.core.utils import DelayedSubmission, cloudpickle_dump
from slurm import task
call = DelayedSubmission(Stubborn())
call.set_timeout(1, 3)
folder = Path(sys.argv[1])
cloudpickle_dump([call], folder / task.PAYLOAD)
(folder / task.PAYLOAD).chmod(0o600)
task.run(folder)
"""


def test_out_of_time_for_the_last_time_is_never_taken_for_a_failure_of_the_code(tmp_path):
    slurm = {
        "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_RESTART_COUNT": "3",
    }  # fmt: skip
    answer = subprocess.run(
        [sys.executable, "-c", STUBBORN, str(tmp_path)], env={**os.environ, **slurm}, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "swallowed" not in answer.stderr
    assert classify(None, answer.stderr, 1 << 30).cause == "TIME"


def payload(folder, mode=0o600):
    path = folder / task.PAYLOAD
    path.write_bytes(pickle.dumps([1, 2]))
    path.chmod(mode)
    return path


def test_a_users_own_payload_is_read(tmp_path):
    payload(tmp_path)
    assert task.read_payload(tmp_path) == [1, 2]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_payload_that_others_can_write_is_not_read(tmp_path, mode):
    payload(tmp_path, mode)
    with pytest.raises(SparseHPCError, match="can be written by others"):
        task.read_payload(tmp_path)


def test_a_linked_or_missing_payload_is_not_read(tmp_path):
    with pytest.raises(SparseHPCError, match="submit again"):
        task.read_payload(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / task.PAYLOAD).symlink_to(payload(tmp_path / "elsewhere"))
    with pytest.raises(SparseHPCError, match="cannot be read"):
        task.read_payload(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_the_payload_of_another_user_is_not_read(tmp_path):
    os.chown(payload(tmp_path), 12345, 12345)
    with pytest.raises(SparseHPCError, match="belongs to user 12345"):
        task.read_payload(tmp_path)


def test_what_a_job_left_in_the_environment_is_not_passed_on():
    before = {
        "SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "1", "SRUN_X": "1", "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a", "PATH": "/bin",
    }  # fmt: skip
    assert submit_environment(before) == {"SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a", "PATH": "/bin"}


def test_local_and_debug_executors_take_the_same_callable_and_no_one_else_can_change_it(tmp_path):
    before = os.umask(0)
    try:
        debug = make_executor("debug", tmp_path / "debug", Resources()).submit(sum, [1, 2])
        local = make_executor("local", tmp_path / "local", Resources(minutes=5)).submit(sum, [1, 2])
    finally:
        os.umask(before)
    assert debug.exception() is None
    assert debug.submission().result() == 3
    assert local.result() == 3
    local._process.wait()
    for folder in (tmp_path / "debug", tmp_path / "local"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "local" / task.PAYLOAD).stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "local").glob("*.pkl")].count(task.PAYLOAD) == 1
    assert not list((tmp_path / "local").glob("*submitted.pkl")), "nothing that submitit would unpickle unchecked"


def test_a_local_job_checks_its_payload_too(tmp_path):
    payload(tmp_path, 0o660)
    local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7", "SUBMITIT_LOCAL_GLOBALID": "0"}
    answer = subprocess.run(
        [sys.executable, "-m", "slurm.task", str(tmp_path)], env={**os.environ, **local}, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "can be written by others (mode 660): it is not run" in answer.stderr


def test_restarts_of_a_local_job_are_counted_by_its_log(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")  # of the allocation it runs in
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    log = tmp_path / "log"
    assert task._restarts(log) == 0
    log.write_text(f"{task.MARK} 7 on here, restart 0\nwords\n{task.MARK} 7 on here, restart 1\n")
    assert task._restarts(log) == 2
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert task._restarts(log) == 5


def test_sbatch_gets_no_script_that_others_could_have_written(tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ncat > {tmp_path}/got\necho Submitted batch job 12\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    script = tmp_path / "submit.sh"
    script.write_text("#!/bin/bash\ntrue\n")
    script.chmod(0o664)
    with pytest.raises(SubmissionRefused, match="can be written by others"):
        call_sbatch(script, 5.0)
    assert not (tmp_path / "got").exists()
    script.chmod(0o644)
    assert call_sbatch(script, 5.0) == "12"
    assert (tmp_path / "got").read_text() == script.read_text()


def test_executors_that_cannot_be_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"unknown executor 'slrum'; did you mean 'slurm'\?"):
        make_executor("slrum", tmp_path, Resources())
    with pytest.raises(UserError, match="needs a profile"):
        make_executor("slurm", tmp_path, Resources())
    with pytest.raises(UserError, match="cannot be used"):
        make_executor("debug", tmp_path / "%j", Resources())


def test_the_payload_is_written_for_its_owner_alone_whatever_the_umask(tmp_path, monkeypatch):
    from submitit.core.utils import DelayedSubmission

    from slurm.executor import ClusterExecutor
    from slurm.profile_file import load_profile

    monkeypatch.setattr(ClusterExecutor, "affinity", classmethod(lambda cls: 2))
    executor = ClusterExecutor(tmp_path / "s", Resources(), load_profile("generic-cpu"), "n")
    before = os.umask(0)
    try:
        script = executor.prepare([DelayedSubmission(sum, [1])])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s" / task.PAYLOAD).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o755
    assert stat.S_IMODE(script.stat().st_mode) == 0o644
    assert "#SBATCH --array=0-0%1" in script.read_text()
    with pytest.raises(SparseHPCError, match="fresh folder"):
        executor.prepare([DelayedSubmission(sum, [1])])

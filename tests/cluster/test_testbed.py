"""The private cluster itself."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cluster_tools import memory_disk

from slurm.testbed import Testbed
from sparsehpc.core.errors import UserError


def test_everything_runs_and_lives_in_one_folder(bed):
    assert bed.status() == {
        "munged": "running", "mariadbd": "running", "slurmdbd": "running", "slurmctld": "running",
        "c1": "idle", "c2": "idle", "g1": "idle",
    }  # fmt: skip
    assert str(bed.folder) in bed.ask("scontrol", "show", "config").stdout
    assert not Path("/etc/slurm/slurm.conf").exists() or os.environ["SLURM_CONF"] != "/etc/slurm/slurm.conf"


def test_its_database_keeps_to_its_own_folder_for_temporary_tables(bed):
    """A MariaDB that starts removes every temporary table in its folder: in /tmp those of any other one."""
    pid = (bed.folder / "mariadbd.our-pid").read_text().split()[0]
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert f"--tmpdir={bed.folder}/temporary" in words


AS_NOBODY = """
import os, sys, time
from pathlib import Path
from slurm.testbed import Testbed
cluster = Testbed(Path(sys.argv[1]))
cluster.up()
try:
    ran = cluster.ask("srun", "--account=testbed", "--mem=100", "id", "-u", timeout_s=60.0)
    accounted = ""
    until = time.monotonic() + 30
    while "COMPLETED" not in accounted and time.monotonic() < until:
        accounted = cluster.ask("sacct", "-nX", "-o", "State").stdout
        time.sleep(0.3)
    print(os.getuid(), ran.stdout.strip(), accounted.strip(), cluster.status()["g1"])
finally:
    cluster.down()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run without root here, and so does the testbed")
def test_it_needs_no_root(bed):
    with tempfile.TemporaryDirectory(prefix="shpc-", dir=memory_disk()) as name:
        folder, root = Path(name), Path(__file__).parents[2]
        folder.chmod(0o755)
        # Only what it needs, where another user can read it: a checkout and an environment may be closed to others.
        for part in (
            "slurm/__init__.py",
            "sparsehpc/__init__.py",
            "sparsehpc/core/__init__.py",
            "sparsehpc/core/errors.py",
        ):
            (folder / "code" / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / part, folder / "code" / part)
        shutil.copytree(root / "slurm" / "testbed", folder / "code" / "slurm" / "testbed")
        (folder / "home").mkdir()
        os.chown(folder / "home", 65534, 65534)
        python = next((p for p in (sys.executable, "/usr/bin/python3") if _runs_for_nobody(p)), None)
        if python is None:
            pytest.skip("no Python of 3.11 or newer that another user could run")
        answer = subprocess.run(
            [python, "-P", "-c", AS_NOBODY, str(folder / "home" / "bed")],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder / "code"), "HOME": str(folder / "home")},
            user=65534, group=65534, extra_groups=[], cwd=folder, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.split() == ["65534", "65534", "COMPLETED", "idle"]
        assert list((folder / "home").iterdir()) == []


def _runs_for_nobody(python):
    words = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return (
            subprocess.run(words, user=65534, group=65534, extra_groups=[], cwd="/", capture_output=True).returncode
            == 0
        )
    except OSError:
        return False


def test_it_refuses_where_a_real_slurm_answers(bed, tmp_path):
    # To a second testbed the first one is a real Slurm: it answers through SLURM_CONF.
    with pytest.raises(UserError, match="a real Slurm answers"):
        Testbed(tmp_path / "second").up()
    assert not (tmp_path / "second").exists()


def test_limits_are_small_and_enforced(bed, tmp_path):
    answer = subprocess.run(
        ["sbatch", "--array=0-51", "--output=/dev/null", "--wrap=true"], capture_output=True, text=True, cwd=tmp_path
    )
    assert "Invalid job array specification" in answer.stderr

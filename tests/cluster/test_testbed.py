"""The private cluster itself."""

import os
import subprocess
from pathlib import Path

import pytest

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

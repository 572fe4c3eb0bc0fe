"""The tutorial "From laptop to cluster", command by command as it is printed."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

from jobs.plan_file import planned_ids
from sparsehpc.core.layout import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


def commands():
    """Lines of the page's shell blocks, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_does_what_the_page_says(bed, tmp_path, wait_for):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),  # its probed profile has the name of a shipped one
        "SPARSEHPC_HOME": str(tmp_path / "home"),
    }
    run, said = RunFolder(tmp_path / "runs" / "first"), {}

    def words(command):
        cell = planned_ids(run.plan)[0] if run.plan.exists() else ""
        return ["bash", "-c", command.replace("NAME", "testbed").replace("CELL", cell)]

    def do(command):
        answer = subprocess.run(
            words(command), cwd=tmp_path, env=environment, input="y\n", text=True, timeout=200,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert answer.returncode == 0, f"{command}\n{answer.stdout}"
        said[command] = answer.stdout

    install, up, address, *rest = commands()
    assert install.startswith("sudo apt-get install -y slurm-wlm")
    assert address == "export SLURM_CONF=/tmp/sparsehpc-testbed-$(id -u)/slurm.conf"
    do(f"{up} --dir {bed.folder}")  # the one that is up: a second one beside it is refused
    with contextlib.ExitStack() as stack:
        for command in rest:
            if "doctor" in command:  # it waits for two jobs; the others need not wait for it
                doctor = stack.enter_context(
                    subprocess.Popen(words(command), cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE)
                )
                continue
            if command == "sparsehpc status runs/first":
                wait_for((run.report / "index.html").exists, "the report", 300)
                wait_for(lambda: "first-" not in bed.ask("squeue", "-h", "-o", "%j").stdout, "the last job's end", 60)
            do(command)
        looked = doctor.communicate(timeout=200)[0]
    assert "c[1-2]" in said["sinfo"]
    assert "#SBATCH --array=0-0%1" in said["sparsehpc submit smoke --profile testbed --out runs/first --dry-run"]
    assert re.search(r"^all +9 +9 ", said["sparsehpc status runs/first"], re.MULTILINE)
    assert "done" in said["sparsehpc logs runs/first CELL"]
    assert "nothing to send again" in said["sparsehpc retry runs/first"]
    assert "nothing waits or runs" in said["sparsehpc cancel runs/first"]
    for check in ("imports", "versions", "cores", "this folder", "clock", "processor", "scratch"):
        assert re.search(rf"^(ok|note) +cpu node: {check}", looked, re.MULTILINE), looked
    seen = "torch sees 0, 1 asked; CUDA_VISIBLE_DEVICES=0"  # Slurm gave the device, and torch finds none behind it
    assert re.search(rf"^wrong +gpu node: GPUs +{seen}", looked, re.MULTILINE), looked
    wrong = [line.split()[1:4] for line in looked.splitlines() if line.startswith("wrong")]
    assert wrong == [["gpu", "node:", "GPUs"]], "the page says so of a testbed"
    assert {path.name for path in tmp_path.iterdir()} == {"config", "home", "runs"}

"""Aggregation on two nodes, and who may speak to its scheduler; the scripts for use by hand."""

import asyncio
import socket
import stat
import subprocess
import sys

import pytest
from cluster_tools import read_tables, slurm

from jobs.spread import without_http
from slurm import script as scripts
from slurm.tls import make_certificates, security

distributed = pytest.importorskip("distributed")
SCRIPTS = scripts.SCRIPTS


def test_cells_and_aggregation_by_hand_on_two_nodes(
    bed, few, cli, status, tmp_path, monkeypatch, undisturbed, wait_for
):
    from jobs.inputs import fix_inputs
    from jobs.plan import make_plan
    from jobs.run import start
    from jobs.study import load_study

    study = load_study(few)
    plan = make_plan(study)
    run, _ = start(study, plan, tmp_path / "run", quiet=True)
    fix_inputs(run, study, plan.cells)
    ids = [cell.cell_id for cell in plan.cells]
    cells = tmp_path / "cells.txt"
    cells.write_text(f"{' '.join(ids[:5])}\n{' '.join(ids[5:])}\n")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("SPARSEHPC_DASK_HOST", "127.0.0.1")  # both nodes are this machine
    words = ["--parsable", "--account=testbed", f"--chdir={tmp_path}", "--mem=1G"]
    array = slurm(
        "sbatch", *words, "--cpus-per-task=1", "--array=1-2", str(SCRIPTS / "cells.sbatch"), str(run.root), str(cells)
    )
    after = f"--dependency=afterany:{array.strip()}"
    job = slurm("sbatch", *words, after, str(SCRIPTS / "aggregate.sbatch"), str(run.root)).strip()
    wait_for((run.report / "index.html").exists, "the report", 300)
    said = (tmp_path / f"aggregate-{job}.log").read_text()
    assert "3 of 3 workers, on c1, c2" in said, said
    assert "9 expected, 9 done" in said
    wait_for(lambda: not list(run.submissions.glob("spread-*")), "certificates to go with the job")
    ours = {path.name: path.read_bytes() for path in run.tables.iterdir()}
    expected = undisturbed(few)
    assert {name: ours[name] for name in expected} == expected
    assert read_tables(run.root) == expected


def test_certificates_are_for_this_user_only(tmp_path):
    make_certificates(tmp_path / "tls")
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()} == {0o600}
    with pytest.raises(FileExistsError):
        make_certificates(tmp_path / "tls")


KNOCK = """
import sys
from pathlib import Path
from distributed import Client
from slurm.tls import security
address, folder = sys.argv[1:]
try:
    settings = security(Path(folder)) if folder else None
    with Client(address, security=settings, timeout=4, set_as_default=False) as client:
        print("in", client.submit(lambda: 1, pure=False).key != "")
except Exception as error:
    print("refused", type(error).__name__)
"""


def test_a_client_without_the_certificate_is_refused(tmp_path):
    for name in ("ours", "theirs"):
        make_certificates(tmp_path / name)

    async def knock(address, folder):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", KNOCK, address, folder, stdout=-1, stderr=subprocess.DEVNULL
        )
        return (await process.communicate())[0].decode().split()

    async def scene():
        settings = security(tmp_path / "ours")
        async with distributed.Scheduler(
            protocol="tls", host="127.0.0.1", port=0, security=settings, **without_http()
        ) as scheduler:
            port = scheduler.http_server.port
            scheduler.http_server.stop()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=2)
            address = scheduler.address
            assert address.startswith("tls://")
            tries = [(address, str(tmp_path / "theirs")), (address, ""), (address.replace("tls", "tcp"), "")]
            answers = [await knock(*words) for words in (*tries, (address, str(tmp_path / "ours")))]
            assert [answer[0] for answer in answers] == ["refused", "refused", "refused", "in"], answers

    asyncio.run(scene())

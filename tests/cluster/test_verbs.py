"""Verbs that ask the cluster something: probe, doctor, testbed, and the dispatch benchmark."""

import json

import pytest

from slurm.profile_file import load_profile
from slurm.resources import Resources


def test_probe_says_what_there_is(bed, cli, tmp_path):
    path = tmp_path / "mine.toml"
    answer = cli("profile", "probe", "--out", path, "--json")
    assert answer.code == 0, answer.said
    found = json.loads(answer.out)["cluster"]
    assert {part["name"]: part["gpus"] for part in found["partitions"]} == {"cpu": 0, "gpu": 1, "spot": 0, "urgent": 0}
    assert {part["name"] for part in found["partitions"] if part["threads_per_core"] == 2} == {"gpu"}
    assert (found["max_array_size"], found["max_submit"], found["accounting"]) == (51, 120, True)
    profile = load_profile(str(path))
    assert profile.job_for(Resources(gpus=1)).partition == "gpu"
    assert cli("profile", "probe", "--out", path).code == 2, "a file that is there stays"
    said = cli("profile", "probe", "--out", path, "--force").err
    assert "a CPU of partition gpu is one of 2 threads of a core" in said
    assert "partition cpu" not in said


def test_doctor_says_what_a_broken_profile_does(bed, cli, tmp_path, write_profile):
    answer = cli("doctor", "--profile", write_profile("python = '/no/such/python'"), "--dir", tmp_path, "--json")
    assert answer.code == 1
    wrong = [
        check for check in json.loads(answer.out) if check["verdict"] == "wrong" and check["name"].startswith("cpu")
    ]
    assert "/no/such/python" in wrong[0]["detail"]


def test_testbed_verbs(bed, cli):
    answer = cli("testbed", "status", "--dir", bed.folder, "--json")
    assert json.loads(answer.out)["parts"]["slurmctld"] == "running"
    assert cli("testbed", "up", "--dir", bed.folder).code == 0, "up again changes nothing"
    assert cli("testbed", "exec", "--dir", bed.folder, "--", "false").code == 1
    assert cli("testbed", "exec", "--dir", bed.folder).code == 2


def test_testbed_verbs_without_one(cli, tmp_path):
    assert cli("testbed", "status", "--dir", tmp_path / "none").code == 1
    assert "sparsehpc testbed up" in cli("testbed", "exec", "--dir", tmp_path / "none", "--", "sinfo").err
    assert "there is no testbed" in cli("testbed", "down", "--dir", tmp_path / "none").out


def test_dispatch_benchmark_counts_every_cell_on_both_sides(bed, tmp_path):
    from jobs.bench.dispatch import no_op_cells, run
    from sparsehpc.core.errors import UserError

    assert len({cell.cell_id for cell in no_op_cells(1000)}) == 1000
    with pytest.raises(UserError, match="legal: cells"):
        run({"cell": "3"})
    [row] = run({"cells": "40", "pack": "20", "profile": "testbed", "dir": str(tmp_path)})
    assert row["work"] == "40 no-op cells in packs of 20"
    assert row["ratio"] == pytest.approx(row["submitit_total_s"] / row["ours_total_s"], rel=0.05)


def test_status_benchmark_asks_the_scheduler_twice(bed, tmp_path):
    from jobs.bench.status import run
    from sparsehpc.core.errors import UserError

    with pytest.raises(UserError, match="legal: cells"):
        run({"cell": "3"})
    [row] = run({"cells": "400", "pack": "10", "profile": "testbed", "dir": str(tmp_path), "repeats": "2"})
    assert row["work"] == "status of 400 cells, 380 of them done, in 40 tasks"
    assert row["scheduler_calls"] == 2
    assert row["ratio"] == pytest.approx(row["baseline_seconds"] / row["seconds"])
    assert row["peak_rss_mib"] > 20

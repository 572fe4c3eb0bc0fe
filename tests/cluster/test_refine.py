"""A refinement through a real Slurm: rounds of added cells, each sent, computed and counted once."""

import json
import os
from collections import Counter
from decimal import Decimal

import pyarrow.parquet as pq
import pytest
from cluster_tools import read_tables, slurm

from jobs.extend import extra_cells
from jobs.plan_file import planned_ids, read_plan
from jobs.refine import MOST_CELLS, Wish, refine_here
from jobs.run import run_study
from slurm.ledger import read_ledger
from sparsehpc.core.layout import RunFolder

#: Random pruning of the tiny model leaves 5 % more perplexity before its first cell at 45 %: two rounds until 0.2.
METRIC, WITHIN = "perplexity", "0.2"


@pytest.fixture
def refined_here(few, tmp_path) -> RunFolder:
    """The same study and the same refinement without a cluster."""
    run, before = RunFolder(tmp_path / "here"), dict(os.environ)
    assert run_study(few, executor="debug", out=run.root, quiet=True, cells_a_job=50).complete
    refine_here(run, Wish.parse(METRIC, WITHIN, None, MOST_CELLS), executor="debug", quiet=True)
    os.environ.clear()
    os.environ.update(before)
    return run


def sent_cells(run: RunFolder) -> Counter[str]:
    """How often each cell was given to a job that Slurm accepted."""
    return Counter(
        cell for item in read_ledger(run)[0] if item.fate == "accepted" for task in item.tasks for cell in task
    )


def test_rounds_are_sent_until_the_bracket_is_narrow_enough_and_nothing_runs_twice(
    bed, few, cli, settled, profile, refined_here, tmp_path
):
    run = RunFolder(tmp_path / "run")
    answer = cli("submit", few, "--profile", "testbed", "--out", run.root, "--yes", "--pack", "9", "--no-aggregate")
    assert answer.code == 0, answer.said
    assert settled(run.root)["cells"]["done"] == 9
    own, rows = planned_ids(run.plan), {cell: run.cell(cell).row.read_bytes() for cell in planned_ids(run.plan)}

    words = ("refine", run.root, "--metric", METRIC, "--within", WITHIN, "--submit", "--yes")
    held = profile("extra = { hold = true }")
    first = cli(*words, "--profile", held)
    assert first.code == 0, first.said
    assert f"next: sparsehpc status {run.root}; once they are done, the same command adds the next round" in first.out
    [added] = extra_cells(run)
    assert (added.pruning.method, added.pruning.sparsity, added.variant) == ("random", "0.22", "masked")
    # While the round waits in the queue, the same command neither adds nor sends anything.
    early = cli(*words)
    assert early.code == 0, early.said
    assert "1 cells of an earlier round are not done" in early.err
    assert [cell.cell_id for cell in extra_cells(run)] == [added.cell_id]
    _, array, last = read_ledger(run)[0]
    assert (array.purpose, last.purpose) == ("cells", "aggregate")
    for item in (array, last):
        slurm("scontrol", "release", item.job_id)
    assert settled(run.root)["cells"]["done"] == 10

    second = cli(*words, "--profile", "testbed", "--json")
    assert second.code == 0, second.said
    told = json.loads(second.out)
    assert told["job_ids"] == [read_ledger(run)[0][-2].job_id]
    states = {bracket["method"]: (bracket["state"], bracket["next"]) for bracket in told["brackets"]}
    assert states == {"magnitude": ("narrow enough", None), "random": ("open", extra_cells(run)[-1].pruning.sparsity)}
    assert settled(run.root)["cells"]["done"] == 11

    last = cli(*words)
    assert last.code == 0, last.said
    assert "nothing to send" in last.out
    [bracket] = [b for b in json.loads(cli(*words, "--json").out)["brackets"] if b["method"] == "random"]
    assert (bracket["state"], bracket["cells_added"]) == ("narrow enough", 2)
    assert Decimal(bracket["beyond"]) - Decimal(bracket["within"]) <= Decimal(WITHIN)

    # Every cell was given to one job, ran there once, and is one row; those of the study are the files they were.
    plan = planned_ids(run.plan)
    assert plan == own + [cell.cell_id for cell in extra_cells(run)]
    assert sent_cells(run) == Counter(plan)
    assert {cell: run.cell(cell).row.read_bytes() for cell in own} == rows
    jobs = [item.job_id for item in read_ledger(run)[0] if item.purpose == "cells"]
    accounted = slurm("sacct", "-nXPj", ",".join(jobs), "-o", "JobID,State").split()
    assert sorted(accounted) == sorted(f"{job}_0|COMPLETED" for job in jobs)
    assert len(jobs) == 3
    expected = read_tables(run.root)
    coverage = pq.read_table(run.tables / "coverage.parquet").to_pylist()
    assert Counter(row["cell_id"] for row in coverage if row["state"] == "done") == Counter(plan)
    counted = pq.read_table(run.tables / "global.parquet").to_pylist()
    assert Counter(row["cell_id"] for row in counted if row["convention"] == "unique") == Counter(plan)
    ran = {row["cell_id"]: row for row in pq.read_table(run.tables / "costs.parquet").to_pylist()}
    assert [ran[cell]["job_id"] for cell in plan[9:]] == [f"{job}_0" for job in jobs[1:]]
    assert {row["attempt"] for row in ran.values()} == {0}
    # The cluster found the cells and the figures that this machine finds by itself.
    assert read_plan(refined_here.plan) == read_plan(run.plan)
    assert read_tables(refined_here.root) == expected

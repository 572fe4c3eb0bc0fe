"""Packing: every cell in exactly one job, jobs share a walk, combinations stay together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import propose as proposing
from jobs.pack import CELLS_A_JOB, by_walk, packs
from jobs.plan import make_plan
from jobs.price import Prices
from jobs.propose import Array, Proposal, class_totals, make_arrays, price_warnings, propose
from jobs.study import find_study, load_study
from jobs.submit import script_of
from slurm.cost import CostModel, Estimate
from slurm.limits import ClusterLimits
from slurm.profile import Limits, Profile
from slurm.profile_file import load_profile
from slurm.resources import Resources
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell, Pruning, Windows

WINDOWS = Windows(corpus="samples", windows=1, window_tokens=8)


def cell(model: str, sparsity: str, variant: str) -> Cell:
    return Cell(
        model=model, pruning=Pruning(method="magnitude", sparsity=sparsity), variant=variant, evaluation=WINDOWS
    )


cells_strategy = st.lists(
    st.builds(cell, st.sampled_from("ab"), st.sampled_from(["0.1", "0.2", "0.3"]), st.sampled_from(["masked", "csr"])),
    unique=True,
)


@settings(deadline=None)  # machines are busy, results are not about time
@given(cells_strategy, st.integers(1, 7))
def test_every_cell_is_in_one_job_of_one_walk(cells: list[Cell], size: int) -> None:
    jobs = packs(cells, size)
    assert sorted(c.cell_id for job in jobs for c in job) == sorted(c.cell_id for c in cells)
    for job in jobs:
        assert 1 <= len(job) <= size
        assert len({c.walk_key for c in job}) == 1


@settings(deadline=None)
@given(cells_strategy, st.integers(2, 7))
def test_a_combination_is_split_only_where_it_does_not_fit(cells: list[Cell], size: int) -> None:
    homes: dict[object, set[int]] = {}
    for number, job in enumerate(packs(cells, size)):
        for c in job:
            homes.setdefault((c.model, c.pruning), set()).add(number)
    assert all(len(numbers) == 1 for numbers in homes.values())


def test_one_cell_a_job_and_all_in_one() -> None:
    cells = [cell("a", "0.1", "masked"), cell("a", "0.1", "csr"), cell("a", "0.2", "masked"), cell("b", "0.1", "csr")]
    assert packs(cells, 1) == [(c,) for c in cells]
    assert packs(cells, 100) == [tuple(cells[:3]), tuple(cells[3:])]
    assert packs(cells, 2) == [tuple(cells[:2]), tuple(cells[2:3]), tuple(cells[3:])]
    assert by_walk(cells) == packs(cells, 100)
    assert packs([], 3) == []


def test_jobs_of_a_submission(tmp_path: Path) -> None:
    """By estimated minutes a small study is one job; ``--pack`` says how many cells a job has."""
    study = load_study(find_study("smoke"))
    plan = make_plan(study)

    def sizes(pack: int | None) -> list[int]:
        proposal = propose(study, plan, load_profile("generic-cpu"), out=tmp_path / "run", pack=pack, ask_cluster=False)
        return [len(task) for array in proposal.arrays for task in array.tasks]

    assert sizes(None) == [9]
    assert sizes(1) == [1] * 9
    assert sizes(4) == [3, 4, 2]  # dense and one combination; combinations of two variants stay together


@pytest.mark.parametrize(
    ("asked", "limits", "minutes"),
    [(5, {}, 15), (15, {}, 15), (40, {}, 40), (5, {"min_minutes": 30}, 30), (40, {"max_minutes": 20}, 20)],
)
def test_jobs_ask_for_at_least_the_least_wall_time(
    tiny_study: Path, tmp_path: Path, asked: int, limits: dict[str, int], minutes: int
) -> None:
    path = tiny_study.with_name(f"asked-{asked}-{minutes}.toml")
    path.write_text(tiny_study.read_text("utf-8").replace("minutes = 15", f"minutes = {asked}"), encoding="utf-8")
    study = load_study(path)
    profile = Profile(limits=Limits(**limits))
    [array] = propose(study, make_plan(study), profile, out=tmp_path / "run", ask_cluster=False).arrays
    assert array.resources.minutes == minutes
    hours, rest = divmod(minutes, 60)
    script = script_of(array, profile, RunFolder(tmp_path / "run"), 0)
    assert f"#SBATCH --time={minutes if not hours else f'{hours}:{rest}:00'}\n" in script


def test_cells_fill_jobs_up_to_the_minutes_of_the_profile() -> None:
    """Ten combinations of two minutes: as many a job as fit the target, and half of the wall time."""
    cells = [cell("m", f"0.{n}", "csr") for n in range(1, 10)]
    two = Estimate(walk_s=0.0, prune_s=0.0, cell_s=120.0, measured=True)

    class Fixed(Prices):
        def estimate(self, cell: Cell) -> Estimate:
            return two

    prices = Fixed({}, {}, CostModel())

    def sizes(minutes_per_job: float, wall_minutes: int) -> list[int]:
        profile = Profile(limits=Limits(minutes_per_job=minutes_per_job))
        classes = {"cpu": Resources(minutes=wall_minutes)}
        arrays, later = make_arrays(cells, classes, profile, ClusterLimits(), None, prices)
        assert later == 0
        return [len(task) for array in arrays for task in array.tasks]

    assert sizes(60, 600) == [9]
    assert sizes(7, 600) == [3, 3, 3]
    assert sizes(60, 15) == [3, 3, 3], "half of 15 minutes"
    assert sizes(0.1, 600) == [1] * 9, "a job holds at least one"


def test_core_hours_and_gpu_hours() -> None:
    """6 jobs of 20 cores and 2 GPUs, 90 minutes of wall time each, estimated at 240 minutes in all."""
    jobs = tuple((cell("m", f"0.{n}", "csr"),) for n in range(1, 7))
    asked = Resources(name="gpu", cpus=20, minutes=90, gpus=2)
    array = Array(asked, jobs, 240.0, "", 64)
    assert (array.hours(), array.hours(asked=True)) == (80.0, 180.0)
    assert (array.hours("gpus"), array.hours("gpus", asked=True)) == (8.0, 18.0)
    whole = dataclasses.replace(array, resources=dataclasses.replace(asked, exclusive=True))
    assert (whole.hours(), whole.hours(asked=True)) == (64 * 4.0, 64 * 9.0), "all cores of the node are paid for"
    assert (whole.hours("gpus"), whole.hours("gpus", asked=True)) == (8.0, 18.0)
    unknown = dataclasses.replace(whole, node_cpus=0)
    assert unknown.hours() == 80.0
    [row] = class_totals([array, array])
    assert row == ("gpu", 2, 12, 12, "4", 90, "160.00", "360.00", "16.00", "36.00")
    proposal = Proposal(RunFolder(Path("r")), (array, whole))
    assert (proposal.hours(), proposal.hours("gpus", asked=True)) == (80.0 + 256.0, 36.0)
    [warning] = price_warnings([unknown, whole], Profile(name="p"))
    assert "profile p does not say how many cores" in warning


def test_numbers_in_the_documentation() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert f"Up to {CELLS_A_JOB} cells of one model share a process" in (docs / "tutorial.md").read_text("utf-8")
    assert f"half of the wall time, at most {CELLS_A_JOB};" in (docs / "cluster.md").read_text("utf-8")
    assert proposing.HEADROOM == 2

"""Packing: every cell in exactly one job, jobs share a walk, combinations stay together."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import propose as proposing
from jobs import run
from jobs.pack import by_walk, packs
from jobs.plan import make_plan
from jobs.propose import propose
from jobs.study import find_study, load_study
from slurm.profile_file import load_profile
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


def test_numbers_in_the_documentation() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert f"Up to {run.CELLS_A_JOB} cells of one model share a process" in (docs / "tutorial.md").read_text("utf-8")
    assert f"half of the wall time, at most {proposing.CELLS_A_JOB};" in (docs / "cluster.md").read_text("utf-8")
    assert proposing.HEADROOM == 2

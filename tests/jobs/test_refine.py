"""Refining: brackets halve to the wanted width, in the run's own plan, whatever stops it in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs import extend, submit_more
from jobs.extend import extend_plan, extra_cells
from jobs.plan_file import planned_ids, read_plan
from jobs.refine import NARROW, STUCK, WAITING, Wish, midpoint, plan_round, refine_here
from jobs.run import run_study
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.layout import RunFolder

from .conftest import Answer

WISH = Wish("top1_agreement", Decimal("0.1"), 0.6)


@pytest.fixture
def run(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr("jobs.refine.summarise", lambda run: None)  # figures and report are seen in `refined`
    return RunFolder(run_copy)


@pytest.fixture(scope="module")
def refined(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The tiny run, refined; tests must not change it."""
    folder = RunFolder(Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("refined") / "run")))
    refine_here(folder, WISH, executor="debug", quiet=True)
    return folder


def curve(run: RunFolder) -> pd.DataFrame:
    table = pd.read_parquet(run.tables / "global.parquet")
    table = table[(table["convention"] == "unique") & (table["variant"] == "masked")]
    return table.sort_values("sparsity_target")


def test_the_bracket_is_narrow_and_the_tolerance_lies_in_it(refined: RunFolder) -> None:
    (step,) = plan_round(refined, WISH)
    assert step.state == NARROW
    assert Decimal(0) < step.high - step.low <= WISH.within
    assert 2 <= step.added <= 4  # halves of 0.5: 0.25, 0.125, at most 0.0625
    found = curve(refined).set_index("sparsity_target")["top1_agreement"]
    assert len(found) == 1 + step.added
    if step.low:
        assert found[float(step.low)] >= WISH.tolerance
    if step.high < 1:
        assert found[float(step.high)] < WISH.tolerance
    # Added cells lie nowhere but where the bracket was, each inside the one before.
    assert all(cell.variant == "masked" for cell in extra_cells(refined))


def test_what_was_added_is_recorded_and_belongs_to_the_run(
    refined: RunFolder, finished_run: Path, tiny_study: Path, tmp_path: Path
) -> None:
    record = json.loads(refined.extensions.read_text())["extensions"]
    assert [len(entry["cells"]) for entry in record] == [1] * len(record)
    assert {(entry["by"], entry["metric"], entry["within"]) for entry in record} == {
        ("refine", "top1_agreement", "0.1")
    }
    own = planned_ids(RunFolder(finished_run).plan)
    assert planned_ids(refined.plan) == own + [cell.cell_id for cell in extra_cells(refined)]
    page = (refined.report / "index.html").read_text()
    assert f"{len(own) + len(record)} of {len(own) + len(record)} cells are done" in page
    copy = RunFolder(Path(shutil.copytree(refined.root, tmp_path / "run")))
    outcome = run_study(tiny_study, executor="debug", out=copy.root, summary=False, quiet=True)
    assert (outcome.computed, outcome.states) == (0, {"done": len(own) + len(record)})
    # An added cell that is lost is computed by the study's own command.
    last = extra_cells(copy)[-1]
    copy.cell(last.cell_id).row.unlink()
    outcome = run_study(tiny_study, executor="debug", out=copy.root, summary=False, quiet=True)
    assert (outcome.computed, outcome.states) == (1, {"done": len(own) + len(record)})


def test_refining_again_does_nothing(refined: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.refine.run_in_process", lambda *_: pytest.fail("computed something"))
    before = planned_ids(refined.plan)
    refine_here(refined, WISH, executor="debug", quiet=True)
    assert planned_ids(refined.plan) == before


def test_stopped_between_record_and_plan_the_next_completes_it(
    run: RunFolder, tiny_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    (step,) = plan_round(run, WISH)
    with monkeypatch.context() as patch:
        patch.setattr(extend, "write_plan", killed)
        with pytest.raises(KilledError):
            extend_plan(run, [step.wanted], {"by": "test"})
    assert len(planned_ids(run.plan)) == 3
    assert len(extra_cells(run)) == 1
    outcome = run_study(tiny_study, executor="debug", out=run.root, summary=False, quiet=True)
    assert (outcome.computed, outcome.states) == (1, {"done": 4})
    assert extend_plan(run, [step.wanted], {"by": "test"}) == []
    assert len(extra_cells(run)) == 1


def test_stopped_before_its_cell_was_computed_it_goes_on_with_that_cell(run: RunFolder) -> None:
    (first,) = plan_round(run, WISH)
    extend_plan(run, [first.wanted], WISH.record())
    (second,) = plan_round(run, WISH)
    assert (second.state, second.wanted) == (WAITING, first.wanted)
    steps = refine_here(run, WISH, executor="debug", quiet=True)
    assert {step.state for step in steps} == {NARROW}


def test_a_cell_that_fails_stops_its_curve_alone(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsehpc.formats.base import FORMATS

    def broken(*_: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(FORMATS.get("masked"), "encode", broken)
    (step,) = refine_here(run, WISH, executor="debug", quiet=True)
    assert step.state == STUCK
    assert "failed" in step.why
    assert len(extra_cells(run)) == 1


def test_no_more_cells_than_allowed(run: RunFolder) -> None:
    wish = Wish("top1_agreement", Decimal("0.001"), 0.6, most=2)
    (step,) = refine_here(run, wish, executor="debug", quiet=True)
    assert (step.added, step.state) == (2, STUCK)
    assert "2 cells" in step.why


def test_middles_have_few_decimals_and_lie_inside() -> None:
    within = Decimal("0.02")
    low, high = Decimal(0), Decimal(1)
    for _ in range(6):
        middle = midpoint(low, high, within)
        assert middle is not None
        assert low < middle < high
        assert -middle.as_tuple().exponent <= 3
        high = middle
    assert high - low <= within
    assert midpoint(Decimal("0.300"), Decimal("0.301"), within) is None


def test_wrong_wishes_are_one_error(run: RunFolder, cli: Callable[..., Answer], tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as caught:
        Wish.parse("perplexty", "much", -1.0)
    assert len(caught.value.problems) == 2
    assert "did you mean 'perplexity'" in str(caught.value)
    with pytest.raises(UserErrors, match="above 0"):
        Wish.parse("perplexity", "0.02", 0)
    with pytest.raises(UserErrors, match="between 0 and 1"):
        Wish.parse("top1_agreement", "0.02", 90)
    said = cli("refine", run.root, "--within", "2")
    assert (said.code, "legal: a difference of two sparsities" in said.err) == (2, True)
    assert cli("refine", tmp_path / "nothing").code == 2
    for path in run.cells.glob("*/*/cell.parquet"):
        path.unlink()
    said = cli("refine", run.root)
    assert said.code == 2
    assert "no pruned cell" in said.err
    run.extensions.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        extra_cells(run)


def test_the_verb_shows_the_next_round_and_then_does_it(run: RunFolder, cli: Callable[..., Answer]) -> None:
    words = ("refine", run.root, "--metric", "top1_agreement", "--tolerance", "0.6", "--within", "0.1")
    said = cli(*words, "--dry-run")
    assert said.code == 0
    assert "1 cells would be added" in said.out
    assert not run.extensions.exists()
    answer = json.loads(cli(*words, "--executor", "debug", "--json").out)
    (bracket,) = answer["brackets"]
    assert bracket["state"] == NARROW
    assert Decimal(bracket["beyond"]) - Decimal(bracket["within"]) <= Decimal("0.1")
    said = cli(*words, "--executor", "debug")
    assert "narrow enough" in said.out


def test_a_round_is_sent_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from slurm.limits import ClusterLimits
    from slurm.profile_file import load_profile

    sent: list[Any] = []
    monkeypatch.setattr(submit_more, "room", lambda profile: (ClusterLimits(), None))
    monkeypatch.setattr(submit_more, "send_arrays", lambda run, arrays, *_: sent.append(arrays) or [])
    profile, said = (
        load_profile(
            sorted(path.stem for path in (Path(__file__).parents[2] / "slurm" / "profiles").glob("*.toml"))[0]
        ),
        [],
    )
    steps = plan_round(run, WISH)
    submit_more.submit_round(run, steps, WISH, profile, said.append)
    ((array,),) = sent
    assert array.tasks == ((steps[0].wanted,),)
    assert read_plan(run.plan)[-1] == steps[0].wanted
    assert submit_more.submit_round(run, plan_round(run, WISH), WISH, profile, said.append) == []
    assert len(sent) == 1
    assert "1 cells of an earlier round are not done" in said[-1]

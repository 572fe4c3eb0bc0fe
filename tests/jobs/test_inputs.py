"""Tokens and snapshots are fixed when a run is made and trusted only by digest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.inputs import calibration_key, evaluation_key, fix_inputs, load_inputs, model_key, prompts_key, token_file
from jobs.plan import make_plan
from jobs.plan_file import read_plan
from jobs.run import run_study, start
from jobs.study import load_study
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Calibration
from sparsehpc.text.windows import TokenWindows

from .conftest import TEXTS, TINY, write_study

CALIBRATED = TINY.replace('"magnitude"', '"wanda"') + (
    '\n[calibration]\ncorpus = "lines:texts.txt"\nwindows = 2\nwindow_tokens = 24\nseeds = [0]\n'
)


def test_tokens_of_a_run_are_those_of_its_texts(finished_run: Path) -> None:
    run = RunFolder(finished_run)
    inputs, cell = load_inputs(run), read_plan(run.plan)[0]
    windows = inputs.evaluation(run, cell)
    assert len(windows.ids) == 3
    # The tiny tokenizer has one token a byte, after the special ones: equal letters have equal ids.
    first = TEXTS.splitlines()[0].encode()[:23]
    assert len({int(i) for i in windows.ids[0]}) >= len(set(first)) - 1
    assert inputs.prompts(run, cell).shape[0] == 20
    provenance = json.loads(run.provenance.read_text(encoding="utf-8"))
    assert provenance["tokens"][evaluation_key(cell)]["digest"] == windows.digest
    assert provenance["snapshots"] == {model_key(cell): inputs.snapshot(cell).digest}


def test_provenance_names_no_user_home_or_host(finished_run: Path, tiny_study: Path) -> None:
    text = (finished_run / "provenance.json").read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert "python" in text
    assert "commit" in text


def test_fixing_twice_changes_nothing(run_copy: Path, tiny_study: Path) -> None:
    run, study = RunFolder(run_copy), load_study(tiny_study)
    before = {path: path.read_bytes() for path in [run.inputs, run.provenance, *run.tokens.iterdir()]}
    fix_inputs(run, study, make_plan(study).cells)
    assert {path: path.read_bytes() for path in [run.inputs, run.provenance, *run.tokens.iterdir()]} == before


def test_a_changed_text_does_not_change_a_run(tmp_path: Path, finished_run: Path) -> None:
    """Nodes and later calls read the tokens that were fixed, whatever the file says by then."""
    path = write_study(tmp_path / "study")
    study = load_study(path)
    run, _ = start(study, make_plan(study), tmp_path / "run", quiet=True)
    digests = fix_inputs(run, study, make_plan(study).cells).tokens
    (tmp_path / "study" / "texts.txt").write_text("Other words.\nAltogether.\nIndeed, they are.\n")
    assert fix_inputs(run, study, make_plan(study).cells).tokens == digests
    token_file(run, evaluation_key(read_plan(run.plan)[0])).unlink()
    with pytest.raises(UserErrors, match="has changed since the run was made"):
        fix_inputs(run, study, make_plan(study).cells)


def test_a_token_file_that_is_another_is_refused(run_copy: Path, tiny_study: Path) -> None:
    run = RunFolder(run_copy)
    cell = read_plan(run.plan)[0]
    other = TokenWindows((np.arange(5),), (5,), True, (0,), "forged")
    other.save(token_file(run, evaluation_key(cell)))
    with pytest.raises(UserError, match="is not what this run was made with"):
        load_inputs(run).evaluation(run, cell)
    study = load_study(tiny_study)
    with pytest.raises(UserErrors, match="is not what this run was made with"):
        fix_inputs(run, study, make_plan(study).cells)


def test_a_damaged_inputs_file(run_copy: Path) -> None:
    RunFolder(run_copy).inputs.write_text("{")
    with pytest.raises(UserError, match="run or submit the study again"):
        load_inputs(RunFolder(run_copy))


def test_weights_that_changed_are_refused(run_copy: Path, tmp_path: Path) -> None:
    run = RunFolder(run_copy)
    cell = read_plan(run.plan)[0]
    inputs = load_inputs(run)
    entry = inputs.models[model_key(cell)]
    copy = Path(shutil.copytree(entry["folder"], tmp_path / "snapshot"))
    manifest = json.loads((copy / "snapshot.json").read_text(encoding="utf-8"))
    (copy / "snapshot.json").write_text(json.dumps({**manifest, "digest": "0" * 64}))
    entry["folder"] = str(copy)
    with pytest.raises(UserError, match="is not the one this run was made with"):
        inputs.snapshot(cell)


def test_calibration_reads_what_evaluation_does_not(tmp_path: Path) -> None:
    path = write_study(tmp_path, CALIBRATED.replace("windows = 3", "windows = 1"))
    study = load_study(path)
    plan = make_plan(study)
    run, _ = start(study, plan, tmp_path / "run", quiet=True)
    inputs = fix_inputs(run, study, plan.cells)
    cell = plan.cells[1]
    draw = cell.pruning.calibration
    assert draw == Calibration(corpus="lines:texts.txt", windows=2, window_tokens=24)
    assert inputs.calibration(run, cell, draw).starts == (1, 2)
    assert inputs.evaluation(run, cell).starts == (0,)
    assert set(inputs.tokens) == {evaluation_key(cell), prompts_key(cell), calibration_key(cell, draw)}


def test_a_corpus_too_short_for_both_is_told_before_anything_runs(tmp_path: Path) -> None:
    path = write_study(tmp_path, CALIBRATED)
    with pytest.raises(UserErrors, match="too short") as caught:
        run_study(path, executor="debug", out=tmp_path / "run", quiet=True)
    assert "2 documents needed, 0 available after the 3 evaluation windows" in str(caught.value)
    assert not (tmp_path / "run" / "cells").exists()


@pytest.mark.parametrize(("text", "words"), [("", "holds no text"), (" \n\n", "holds no text"), (None, "texts.txt")])
def test_an_empty_or_missing_corpus(tmp_path: Path, text: str | None, words: str) -> None:
    path = write_study(tmp_path)
    if text is None:
        (tmp_path / "texts.txt").unlink()
    else:
        (tmp_path / "texts.txt").write_text(text)
    with pytest.raises(UserErrors, match=words):
        run_study(path, executor="debug", out=tmp_path / "run", quiet=True)

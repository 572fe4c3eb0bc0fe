"""The verbs export, diff, merge and advise as a person calls them."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

import jobs.cli
from aggregate.api import aggregate_run


@pytest.fixture(scope="module")
def call():
    jobs.cli._add_verbs()
    return lambda *words: CliRunner().invoke(jobs.cli.app, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, synthetic):
    run = synthetic.write_run(tmp_path_factory.mktemp("verbs") / "run", sparsities=("0.3",), windows=16)
    aggregate_run(run, figures=False)
    return run.root


def test_export_writes_to_the_terminal_or_a_file(call, folder, tmp_path):
    found = call("export", folder, "--columns", "model, perplexity")
    assert found.exit_code == 0
    assert found.output.startswith("| model | perplexity |")
    out = tmp_path / "t.tex"
    assert call("export", folder, "--format", "latex", "--out", out).output == f"written: {out}\n"
    assert "\\toprule" in out.read_text()


def test_diff_ends_with_a_status_for_scripts(call, folder):
    assert call("diff", folder, folder).exit_code == 0
    found = call("diff", folder, folder, "--json")
    assert json.loads(found.output)["verdicts"]["worse"] == 0


def test_merge_joins(call, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    found = call("merge", folder, other, "--out", tmp_path / "merged")
    assert found.exit_code == 0
    assert "3 cells were in several runs and agree" in found.output
    assert call("merge", folder, other, "--out", tmp_path / "merged", "--json").exit_code == 0


def test_advise_by_run_and_by_model(call, folder, tmp_path, monkeypatch):
    found = call("advise", folder, "--max-mib", "1")
    assert found.exit_code == 0
    assert "take tiny float32" in found.output
    assert call("advise", folder, "--max-mib", "0.0001").exit_code == 1
    shutil.copytree(folder, tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    assert json.loads(call("advise", "tiny", "--max-ppl", "+90%", "--json").output)[0]["qualifying"]
    assert "no run folder" in str(call("advise", "nothing", "--max-mib", "1").exception)

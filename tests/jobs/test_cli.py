"""The command line: what it says, word for word, and its exit statuses."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.study_schema import study_schema

from .conftest import TINY, Answer, write_study

GOLDEN = Path(__file__).parent.parent / "golden" / "cli"
Call = Callable[..., Answer]

#: A study whose plan drops combinations for every reason there is.
DROPPING = """\
[study]
name = "dropping"
seed = 718

[[models]]
id = "facebook/opt-125m"

[[models]]
id = "EleutherAI/pythia-410m"
dtype = "float16"
resource = "gpu"

[grid]
methods = ["magnitude", "magnitude-rowwise"]
patterns = ["unstructured", "2:4"]
sparsities = [0.3, 0.5]
variants = ["masked", "csr", "nm"]

[evaluation]
corpus = "samples"
windows = 40
window_tokens = 512

[resources.cpu]
cpus = 4

[resources.gpu]
gpus = 1
"""
WRONG = """\
[study]
name = "a/b"

[[models]]
id = "facebook/opt-152m"
dtype = "float23"

[grid]
methods = ["magnitud"]
sparsities = [0.3, 1.2, "30"]
variants = ["crs"]
tie_rule = "first"

[evaluation]
corpus = "sample"
windows = 0
"""


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("ACCEPT_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path} is missing; ACCEPT_GOLDEN=1 pytest {__file__} writes it"
    assert text == path.read_text(encoding="utf-8"), (
        f"what the command line says ({name}) changed. If that is meant, accept it with\n"
        f"  ACCEPT_GOLDEN=1 pytest {__file__}\nand look at `git diff {path}` before you commit."
    )


def without_estimates(text: str) -> str:
    """Memory and hours are estimates that get better; the words and cells around them stay."""
    return re.sub(r" +", " ", re.sub(r"\b\d+\.\d+(?= )|\b\d+\.\d+$", "N", text, flags=re.MULTILINE))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_every_verb_is_there_and_explains_itself(cli: Call) -> None:
    said = cli("--help")
    verbs = ["doctor", "ls", "describe", "init", "schema", "prepare", "plan", "run", "submit", "status", "script"]
    for verb in [*verbs, "aggregate", "report", "bench"]:
        assert re.search(rf"^  {verb} +\S", said.out, re.MULTILINE), verb
        helped = cli(verb, "--help")
        assert helped.code == 0
        assert "Usage: sparsehpc" in helped.out


def test_plan_in_words(cli: Call, tmp_path: Path) -> None:
    said = cli("plan", write(tmp_path, "dropping.toml", DROPPING))
    assert (said.code, said.err) == (0, "")
    compare("plan.txt", without_estimates(said.out))


def test_plan_lists_cells_for_people_and_programs(cli: Call, tmp_path: Path) -> None:
    path = write(tmp_path, "dropping.toml", DROPPING)
    compare("plan-cells.txt", without_estimates(cli("plan", path, "--cells").out))
    told = json.loads(cli("plan", path, "--cells", "--json").out)
    assert told["cells_total"] == len(told["cells"]) == 23
    assert told["cells"][0]["variant"] == "dense"
    assert {entry["device"] for entry in told["classes"]} == {"cpu", "cuda"}
    assert all(entry["reason"] for entry in told["dropped"])


def test_mistakes_are_shown_without_a_traceback(cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "wrong.toml", WRONG)
    said = cli("plan", "wrong.toml")
    assert (said.code, said.out) == (2, "")
    compare("study-errors.txt", re.sub(r"Legal: [^\n]*", "Legal: ...", said.err))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "nowhere.toml"], "no study file 'nowhere.toml'"),
        (["status", "nowhere"], "there is no run folder nowhere"),
        (["aggregate", "."], "is no run folder: it has no plan.parquet"),
        (["report", "nowhere"], "there is no run folder"),
        (["script", "nowhere", "ab"], "there is no run folder"),
        (["bench", "plann"], "did you mean 'plan'"),
        (["bench", "plan", "--set", "cells"], "is no KEY=VALUE"),
        (["submit", "smoke", "--profile", "generic-cpo", "--dry-run"], "did you mean 'generic-cpu'"),
        (["prepare", "smollm2-153m"], "did you mean 'smollm2-135m'"),
        (["prepare", "facebook/opt-125m", "samples", "--revision", "main"], "--revision goes with one model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_clear_error(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli(*words)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert message in said.err
    assert "Traceback" not in said.err


def test_an_unexpected_error_keeps_its_traceback(cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("jobs.study.load_study", broken)
    with pytest.raises(ZeroDivisionError):
        cli("plan", "smoke")


def test_init_writes_a_study_that_plans_and_never_overwrites(cli: Call, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert cli("init", path).out == f"wrote {path}; next: sparsehpc plan {path}\n"
    assert cli("plan", path).code == 0
    path.write_text("# mine\n")
    again = cli("init", path)
    assert again.code == 2
    assert "already there" in again.err
    assert path.read_text() == "# mine\n"
    assert cli("init", path, "--force").code == 0
    assert cli("init", tmp_path / "none" / "x" / "y.toml").code == 0


def test_the_schema_knows_the_registries(cli: Call) -> None:
    schema = json.loads(cli("schema").out)
    assert schema == study_schema()
    grid = schema["properties"]["grid"]["anyOf"][0]["properties"]
    assert {"magnitude", "random"} <= set(grid["methods"]["items"]["enum"])
    assert {"masked", "csr"} <= set(grid["variants"]["items"]["enum"])
    assert "2:4" in grid["patterns"]["items"]["enum"]
    assert "options" not in grid
    assert grid["tie_rule"]["anyOf"][0]["enum"] == ["index", "threshold"]
    assert "$ref" not in json.dumps(schema)


def test_prepare_everything_a_study_needs(cli: Call, tmp_path: Path) -> None:
    told = cli("prepare", write_study(tmp_path), "--json")
    assert told.code == 0, told.err
    entries = json.loads(told.out)
    assert [(entry["kind"], entry["name"]) for entry in entries] == [
        ("model", "random:model"),
        ("corpus", "lines:texts.txt"),
    ]
    assert (Path(entries[0]["where"]) / "model.safetensors").is_file()
    (tmp_path / "texts.txt").unlink()
    assert "texts.txt" in cli("prepare", tmp_path / "tiny.toml").err


def test_run_says_what_it_does_in_plain_lines(cli: Call, tiny_study: Path, tmp_path: Path) -> None:
    said = cli("run", tiny_study, "--out", tmp_path / "r", "--executor", "debug", "--no-report")
    assert said.code == 0
    assert said.out == "3 done of 3 cells\n"
    lines = [line for line in said.err.splitlines() if line.startswith("[")]
    assert lines == [
        "[1/3] done: random:model dense",
        "[2/3] done: random:model magnitude unstructured 0.5 masked",
        "[3/3] done: random:model magnitude unstructured 0.5 csr",
    ]
    assert "\x1b" not in said.err


def test_run_for_programs(cli: Call, finished_run: Path, tiny_study: Path) -> None:
    said = cli("run", tiny_study, "--out", finished_run, "--json")
    assert json.loads(said.out) == {
        "run": str(finished_run),
        "cells": {"done": 3},
        "computed": 0,
        "report": str(finished_run / "report" / "index.html"),
    }
    assert said.err == ""


def test_another_study_in_the_same_folder(cli: Call, run_copy: Path, tmp_path: Path) -> None:
    other = write_study(tmp_path / "other", TINY.replace("[0.5]", "[0.6]"))
    said = cli("run", other, "--out", run_copy)
    assert said.code == 2
    assert "made from another study" in said.err
    assert "grid.sparsities" in said.err


def test_aggregate_and_report_from_what_is_there(cli: Call, run_copy: Path) -> None:
    shutil.rmtree(run_copy / "tables")
    assert "has no tables yet" in cli("report", run_copy).err
    assert json.loads(cli("aggregate", run_copy, "--json").out)["coverage"]["done"] == 3
    assert cli("report", run_copy).code == 0
    with (run_copy / "tables" / "global.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = (
        "model,dtype,method,pattern,sparsity_target,variant,calibration_seed,convention,params_total,params_nonzero,"
        "sparsity,sparsity_prunable,bytes_total,bytes_ratio,flops_dense,flops_theoretical,flops_executed,"
        "top1_agreement,kl,perplexity,perplexity_dense,bits_per_byte,trained,cell_id"
    )
    assert set(wanted.split(",")) <= set(rows[0])
    assert {row["trained"] for row in rows} == {"false"}


def test_script_is_a_plain_sbatch_file(cli: Call, finished_run: Path) -> None:
    ids = sorted(path.parent.name for path in finished_run.glob("cells/*/*/cell.parquet"))
    said = cli("script", finished_run, ids[0][:8], "--profile", "generic-cpu")
    assert said.code == 0
    assert said.out.startswith("#!/bin/bash\n#SBATCH --")
    assert said.out.rstrip().endswith(f"-m jobs cell {finished_run.resolve()} {ids[0]}")
    assert "#SBATCH --cpus-per-task=1\n" in said.out
    assert (finished_run / "logs").is_dir()


def test_a_profile_is_shown_with_defaults_and_of_its_classes_what_they_change(cli: Call) -> None:
    said = cli("profile", "show", "testbed")
    shown = json.loads(said.out)
    assert (shown["job"]["account"], shown["job"]["stage_weights"]) == ("testbed", False)
    assert shown["class"] == {"cpu": {"partition": "cpu"}, "gpu": {"partition": "gpu", "gpus_by": "gres"}}


def test_submit_dry_run_shows_classes_and_scripts_and_writes_nothing(cli: Call, tmp_path: Path) -> None:
    said = cli("submit", "reference", "--profile", "generic-gpu", "--dry-run", "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert said.out.count("#!/bin/bash") == 2
    assert "--gres=gpu:1" in said.out
    assert re.search(r"^cpu +1 ", said.out, re.MULTILINE)
    assert re.search(r"^gpu +1 ", said.out, re.MULTILINE)
    assert not (tmp_path / "run").exists()
    told = json.loads(
        cli("submit", "reference", "-p", "generic-gpu", "--dry-run", "--json", "--out", tmp_path / "run").out
    )
    assert len(told["scripts"]) == 2


def test_submit_of_a_model_that_is_not_prepared_is_one_error_before_anything_else(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEHPC_HOME", str(tmp_path / "home"))
    said = cli("submit", "reference", "--profile", "generic-gpu", "--out", tmp_path / "run")
    assert said.code == 2
    assert "facebook/opt-125m is not prepared" in said.err
    assert "EleutherAI/pythia-410m is not prepared" in said.err
    assert "sparsehpc prepare" in said.err
    assert "submit?" not in said.err + said.out
    assert "squeue" not in said.err
    assert not (tmp_path / "run").exists()


def test_ls_lists_what_there_is(cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lists = json.loads(cli("ls", "--json").out)
    assert {"smollm2-135m", "facebook/opt-125m"} <= {entry["name"] for entry in lists["models"]}
    assert {entry["name"] for entry in lists["corpora"]} >= {"samples", "python-docs", "file:PATH", "lines:PATH"}
    assert lists["runs"] == []
    assert all(entry["summary"] for entry in lists["studies"] + lists["variants"] + lists["metrics"])
    said = cli("ls", "methods")
    assert said.out.splitlines()[0].split() == ["name", "data", "patterns", "title"]


def test_ls_shows_runs_of_this_folder(cli: Call, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished_run.parent)
    (finished_run.parent / "runs").symlink_to(".")
    assert "runs/tiny" in cli("ls", "runs").out


def test_doctor(cli: Call) -> None:
    checks = {check["name"]: check for check in json.loads(cli("doctor", "--json").out)}
    assert checks["packages"]["verdict"] == "ok"
    assert checks["torch"]["verdict"] == "ok"
    said = cli("doctor")
    assert said.code == 0
    assert re.search(r"^ok +torch ", said.out, re.MULTILINE)


def test_bench_writes_rows_with_their_conditions(cli: Call, tmp_path: Path) -> None:
    said = cli("bench", "plan", "--set", "cells=200", "--json", tmp_path / "rows.json")
    assert said.code == 0, said.err
    written = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    (row,) = written["rows"]
    assert row["suite"] == "plan"
    assert row["ratio"] > 0
    assert written["machine"]["cpu_model"]
    assert written["software"]["versions"]["pyarrow"]
    markdown = cli("bench", "--markdown", "--json", tmp_path / "rows.json").out
    assert markdown.startswith("**plan.**")
    assert "| work | against | ratio |" in markdown
    (tmp_path / "other.json").write_text("[]", encoding="utf-8")
    assert "holds no results of a benchmark" in cli("bench", "--markdown", "--json", tmp_path / "other.json").err
    assert "plan" in cli("bench").out

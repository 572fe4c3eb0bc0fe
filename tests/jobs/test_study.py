"""Study files: every mistake is named with its key, the legal values and the nearest name; all at once."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from jobs.plan import make_plan
from jobs.study import SHIPPED, find_study, load_study, parse_study, shipped_studies
from jobs.summary import pattern_notes
from jobs.template import template
from sparsehpc.core.errors import UserError, UserErrors

GOOD = """\
[study]
name = "good"
[[models]]
id = "random:opt-125m"
[grid]
methods = ["magnitude"]
sparsities = [0.3]
variants = ["masked"]
[evaluation]
corpus = "samples"
windows = 4
window_tokens = 32
"""
CALIBRATION = '[calibration]\ncorpus = "python-docs"\nwindows = 2\nwindow_tokens = 32\n'


def problems_of(text: str, path: Path = Path("study.toml")) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        make_plan(parse_study(text, path))
    assert str(path) in str(caught.value)
    return list(caught.value.problems)


def only_problem(text: str) -> str:
    problems = problems_of(text)
    assert len(problems) == 1, problems
    return problems[0]


def test_a_short_file_is_enough_and_defaults_are_filled_in() -> None:
    study = parse_study(GOOD, Path("study.toml"))
    (grid,) = study.grids
    assert grid.sparsities == (Decimal("0.3"),)
    assert (grid.patterns, grid.targets, grid.refit) == (("unstructured",), ("attention", "mlp"), (False,))
    assert study.models[0].dtype == "float32"
    assert study.resources["cpu"].device == "cpu"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"random:opt-125m"', '"opt-125"', ["models[1].id", "unknown model 'opt-125'", "did you mean 'opt-125m'"]),
        ('"random:opt-125m"', '"random:opt-12m"', ["models[1].id", "did you mean 'opt-125m'"]),
        ('"random:opt-125m"', '"a/b/c"', ["models[1].id", "unknown model"]),
        ('"random:opt-125m"', '"nowhere.gguf"', ["models[1].id", "nowhere.gguf"]),
        ('"random:opt-125m"', '"x\\ny"', ["models[1].id", "one line"]),
        ('"magnitude"', '"magnitud"', ["grid.methods[1]", "unknown method", "did you mean 'magnitude'", "random"]),
        ('"masked"', '"crs"', ["grid.variants[1]", "unknown variant", "did you mean 'csr'"]),
        ("[0.3]", "[1.2]", ["grid.sparsities[1] is 1.2", "from 0 to 1"]),
        ("[0.3]", "[30]", ["grid.sparsities[1] is 30", "0.3 for 30 %"]),
        ("[0.3]", "[-0.1]", ["grid.sparsities[1] is -0.1", "from 0 to 1"]),
        ("[0.3]", "[nan]", ["grid.sparsities[1] is NaN", "from 0 to 1"]),
        ("[0.3]", "[inf]", ["grid.sparsities[1] is Infinity"]),
        ("[0.3]", '["30"]', ["grid.sparsities[1] is '30'", "without quotes"]),
        ("[0.3]", "[true]", ["grid.sparsities[1] is True"]),
        ("[0.3]", "[1e-999999999]", ["decimal places"]),
        ("[0.3]", "[1e9999999999999999999999]", ["a number has too many digits"]),
        ("windows = 4", f"windows = {'9' * 5000}", ["a number has too many digits"]),
        ("[0.3]", "[" * 5000 + "]" * 5000, ["nested too deeply"]),
        ("[0.3]", "[]", ["grid.sparsities is empty"]),
        ("[0.3]", "0.3", ["grid.sparsities is 0.3", "a list"]),
        ("[0.3]", "[0.3, 0.30]", ["grid.sparsities is [0.3, 0.30]", "0.3 is there twice"]),
        ('["masked"]', '["masked", "masked"]', ["grid.variants", "'masked' is there twice"]),
        ('"good"', '"../up"', ["study.name is '../up'", "letters, digits"]),
        ('"good"', '"a/b"', ["study.name is 'a/b'"]),
        ('"good"', '"a\\nb"', ["study.name is 'a\\nb'"]),
        ('"good"', '"-rf"', ["study.name is '-rf'"]),
        ('"good"', '"a..b"', ["study.name is 'a..b'"]),
        ('"good"', '"good"\nsed = 1', ["study: unknown key 'sed'", "did you mean 'seed'"]),
        ('"good"', '"good"\nseed = -1', ["study.seed is -1"]),
        ('"good"', '"good"\nseed = 1.5', ["study.seed is 1.5"]),
        ("windows = 4", "windows = -4", ["evaluation.windows is -4", "greater than or equal to 1"]),
        ("windows = 4", "windows = 0", ["evaluation.windows is 0"]),
        ("windows = 4", "windows = true", ["evaluation.windows is True", "whole number"]),
        ("windows = 4", 'windows = "4"', ["evaluation.windows is '4'", "whole number"]),
        ("windows = 4\n", "", ["evaluation.windows is missing"]),
        ("window_tokens = 32", "window_tokens = 1", ["evaluation.window_tokens is 1"]),
        ("window_tokens = 32", "window_tokens = 9999", ["window_tokens is 9999", "at most 2048", "random:opt-125m"]),
        ('"samples"', '"sample"', ["evaluation.corpus", "unknown corpus", "did you mean 'samples'"]),
        ('"samples"', '"file:"', ["evaluation.corpus", "names no file"]),
        ("[evaluation]", "[evalution]", ["unknown table", "did you mean 'evaluation'"]),
        ("[grid]", "[grid]\nmetods = 3", ["grid: unknown key 'metods'", "did you mean 'methods'"]),
        ("[grid]", '[grid]\npatterns = ["2;4"]', ["grid.patterns[1]", "unknown pattern", "did you mean '2:4'"]),
        ("[grid]", '[grid]\ntargets = ["atention"]', ["grid.targets[1]", "did you mean 'attention'"]),
        ("[grid]", '[grid]\nallocation = "even"', ["grid.allocation[1]", "unknown allocation"]),
        ("[grid]", "[grid]\nrefit = 1", ["grid.refit[1] is 1"]),
        ("[grid]", '[grid]\ntie_rule = "first"', ["grid.tie_rule", "'index'", "'threshold'"]),
        ("[grid]", "[grid]\ntie_rul = 1", ["grid: unknown key 'tie_rul'", "did you mean 'tie_rule'"]),
        ("[grid]", '[grid]\ntie_rule = ["index", "index"]', ["grid.tie_rule", "distinct"]),
        ("[grid]", '[grid]\noptions = "x"', ["grid: unknown key 'options'"]),
        ('id = "random', 'dtype = "float31"\nid = "random', ["models[1].dtype", "did you mean 'float32'", "bfloat16"]),
        ('id = "random', 'resource = "gpu"\nid = "random', ["models[1].resource", "'gpu'", "cpu"]),
        ('id = "random', 'revision = "main"\nid = "random', ["models[1].id", "takes no revision"]),
        (
            'id = "random',
            'trust_remote_code = true\nid = "random',
            ["models[1].trust_remote_code", "is never run", "gpt_neox, llama", "leave the key out"],
        ),
        ('["magnitude"]', '["wanda"]', ["grid.methods", "wanda", "[calibration]", "corpus, windows, window_tokens"]),
    ],
)
def test_each_mistake_is_named_with_key_and_legal_values(old: str, new: str, words: list[str]) -> None:
    assert old in GOOD
    problem = "\n".join(problems_of(GOOD.replace(old, new, 1)))
    for word in words:
        assert word in problem, problem


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[resources.cpu]\ncpus = 0\n", ["resources.cpu.cpus is 0", "from 1 to"]),
        ("[resources.cpu]\nmemory = 3\n", ["unknown key 'memory'", "memory_gib"]),
        ('[resources."a/b"]\ncpus = 1\n', ["not a legal name"]),
        ("resources = 3\n", ["resources is 3"]),
        (CALIBRATION.replace("windows = 2", "windows = -2"), ["calibration.windows is -2"]),
        (CALIBRATION + "seeds = [0, 0]\n", ["calibration.seeds", "0 is there twice"]),
        (CALIBRATION.replace("window_tokens = 32", "window_tokens = 5000"), ["calibration.window_tokens is 5000"]),
    ],
)
def test_other_tables(table: str, words: list[str]) -> None:
    text = table + GOOD if table.startswith("resources") else GOOD + table
    problem = "\n".join(problems_of(text))
    for word in words:
        assert word in problem, problem


def test_a_fractional_memory_is_legal() -> None:
    study = parse_study(GOOD + "[resources.cpu]\nmemory_gib = 0.5\n", Path("study.toml"))
    assert study.resources["cpu"].memory_mib == 512


def test_every_problem_is_told_at_once() -> None:
    text = GOOD.replace('"good"', '"a/b"').replace('"magnitude"', '"magnitud"').replace("[0.3]", '[1.2, "30", 0.3]')
    text = text.replace("windows = 4", "windows = -4").replace("random:opt-125m", "opt-125")
    found = "\n".join(problems_of(text + "[resources.cpu]\ncpus = 0\n"))
    for key in ("study.name", "grid.methods[1]", "grid.sparsities[1]", "grid.sparsities[2]", "evaluation.windows"):
        assert key in found
    assert "models[1].id" in found
    assert "resources.cpu.cpus" in found


@pytest.mark.parametrize("more", ['dtype = "float8"', 'dtyp = "float32"', ""])
def test_a_wrong_model_table_hides_neither_its_name_nor_its_class(more) -> None:
    text = GOOD.replace('id = "random:opt-125m"', f'id = "smollm-135m"\nresource = "gpux"\n{more}')
    found = "\n".join(problems_of(text))
    assert "models[1].id: unknown model 'smollm-135m'; did you mean 'smollm2-135m'?" in found
    assert "models[1].resource: unknown resource class 'gpux'" in found
    assert not more or f"models[1].{more.split()[0]}" in found or "dtyp" in found
    assert found.count("models[1].id") == 1


def test_several_grids_are_told_apart_in_messages() -> None:
    text = GOOD.replace("[grid]", "[[grid]]") + '[[grid]]\nmethods = ["x"]\nsparsities = [0.1]\nvariants = ["csr"]\n'
    assert only_problem(text).startswith("grid[2].methods[1]: unknown method 'x'")


@pytest.mark.parametrize("table", ["study", "models", "grid", "evaluation"])
def test_missing_tables(table: str) -> None:
    lines = GOOD.splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip("[]") == table)
    end = next((n for n in range(start + 1, len(lines)) if lines[n].startswith("[")), len(lines))
    problems = problems_of("\n".join(lines[:start] + lines[end:]))
    assert any(f"[{table}]" in problem and "missing" in problem for problem in problems)


def test_text_that_is_no_toml_is_named_with_line_and_column() -> None:
    assert "line 1" in only_problem("[study\n")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_study(tmp_path / "s.toml")


def test_a_file_that_is_not_there_names_the_nearest_shipped_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        find_study("quickstrat")
    with pytest.raises(UserError, match="is a folder"):
        find_study(str(tmp_path))


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_plan_and_are_called_like_their_file(name: str) -> None:
    study = load_study(find_study(name))
    assert study.name == name
    assert make_plan(study).cells
    assert (SHIPPED / f"{name}.toml").read_text(encoding="utf-8").startswith("# ")


def test_plan_says_which_patterns_fix_the_sparsity() -> None:
    notes = pattern_notes(make_plan(load_study(find_study("methods"))))
    assert [note.split(" fixes")[0] for note in notes] == ["pattern 2:4", "pattern 4:8"]
    assert all("fixes the sparsity at 50 %" in note for note in notes)
    assert pattern_notes(make_plan(load_study(find_study("quickstart")))) == []


@pytest.mark.parametrize(("sparsity", "fits"), [("0.2", False), ("0.34", True), ("1.0", False)])
def test_heads_that_none_or_all_would_go_are_left_out_with_the_reason(
    tmp_path: Path, sparsity: str, fits: bool
) -> None:
    """Three groups of heads in a layer: 20 % of them is none."""
    text = (SHIPPED / "heads.toml").read_text(encoding="utf-8")
    start, end = text.index("[[grid]]"), text.index("[evaluation]")
    grid = f"""[grid]
methods = ["magnitude"]
patterns = ["heads", "unstructured"]
sparsities = [{sparsity}]
variants = ["masked"]

"""
    path = tmp_path / "heads.toml"
    path.write_text(text[:start] + grid + text[end:], encoding="utf-8")
    plan = make_plan(load_study(path))
    assert any(cell.pruning.pattern == "heads" for cell in plan.cells) == fits
    reasons = [entry.reason for entry in plan.dropped]
    assert bool(reasons) != fits
    assert all("none of the 3 heads" in reason for reason in reasons), reasons


def test_the_studies_that_the_documentation_promises_are_there() -> None:
    promised = {"reference", "reference-untrained", "tipping-point", "scaling", "quickstart", "smoke"}
    assert promised <= set(shipped_studies())


def test_the_template_is_a_study_that_plans() -> None:
    study = parse_study(template("mine"), Path("mine.toml"))
    assert study.name == "mine"
    # The dense model, three lossy references, and three sparsities stored in two ways.
    assert len(make_plan(study).cells) == 1 + 3 + 3 * 2


@pytest.mark.parametrize("name", ["a b", "../x", "", "x" * 80, 'q"uote'])
def test_the_template_never_writes_a_name_that_is_not_legal(name: str) -> None:
    assert parse_study(template(name), Path("x.toml")).name == "my-study"


def test_one_name_for_one_model(tmp_path: Path) -> None:
    """A model's short name, its id and its pinned revision give the same cells."""
    ids = []
    for written in ('id = "opt-125m"', 'id = "facebook/opt-125m"',
                    'id = "facebook/opt-125m"\nrevision = "27dcfa74d334bc871f3234de431e71c6eeba5dd6"'):  # fmt: skip
        plan = make_plan(parse_study(GOOD.replace('id = "random:opt-125m"', written), tmp_path / "s.toml"))
        ids.append([cell.cell_id for cell in plan.cells])
    assert ids[0] == ids[1] == ids[2]

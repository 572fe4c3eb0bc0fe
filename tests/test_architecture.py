"""Imports run one way, plugins know nothing of each other, and what a login node runs loads no torch."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sparsehpc", "jobs", "slurm", "aggregate")
PLUGINS = (
    "sparsehpc.pruning.methods",
    "sparsehpc.formats.layouts",
    "sparsehpc.metrics.measures",
    "sparsehpc.models.families",
    "sparsehpc.text.corpora",
)
#: What each part of the project may import of the project; the first prefix that fits a module decides.
ALLOWED = (
    ("sparsehpc.core", ("sparsehpc.core",)),
    ("sparsehpc", ("sparsehpc",)),
    ("slurm", ("slurm", "sparsehpc.core")),
    ("aggregate", ("aggregate", "sparsehpc.core")),
    ("jobs", PACKAGES),
)
HEAVY = ("torch", "transformers", "accelerate", "datasets")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(name: str, *, top_level_only: bool = False) -> set[str]:
    """Absolute names that a module imports; a name imported from a package counts as the submodule if it is one."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_type_checking(node) and top_level_only:
            return
        if top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            base = node.module or ""
            for alias in node.names:
                found.add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    allowed = next(prefixes for part, prefixes in ALLOWED if within(name, (part,)))
    # The package itself holds nothing but its version.
    ours = {found for found in imports_of(name) if within(found, PACKAGES)} - {"sparsehpc"}
    wrong = sorted(found for found in ours if not within(found, allowed))
    assert not wrong, f"{name} may import {', '.join(allowed)}, and imports {', '.join(wrong)}"


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, PLUGINS) and name not in PLUGINS])
def test_plugins_do_not_import_each_other(name: str) -> None:
    wrong = sorted(found for found in imports_of(name) if within(found, PLUGINS))
    assert not wrong, f"{name} imports the plugins {', '.join(wrong)}; shared code belongs beside the contract"


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, PLUGINS)])
def test_plugins_load_no_torch_when_they_are_listed(name: str) -> None:
    wrong = sorted(found for found in imports_of(name, top_level_only=True) if within(found, HEAVY))
    assert not wrong, f"{name} imports {', '.join(wrong)} at its top; import inside the functions that need it"


def test_nothing_but_jobs_and_tests_imports_jobs() -> None:
    users = {name.partition(".")[0] for name in MODULES if any(within(found, ("jobs",)) for found in imports_of(name))}
    assert users == {"jobs"}


def test_the_test_itself_sees_what_it_looks_for() -> None:
    assert "torch" in imports_of("sparsehpc.pipeline")
    assert "sparsehpc.core.layout" in imports_of("jobs.cell")
    assert "torch" not in imports_of("jobs.threads", top_level_only=True)
    assert "torch" in imports_of("jobs.threads")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_resolve_inside_the_project(package: str) -> None:
    """Their names are common: another distribution of the same name must not win."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert ROOT in Path(spec.origin).resolve().parents, f"another package {package!r} shadows ours: {spec.origin}"


def loaded_by(folder: Path, *words: str) -> set[str]:
    """Top-level modules that a call of the command line has loaded when it ends."""
    script = (
        "import json, sys\n"
        "from jobs.cli import main\n"
        f"sys.argv = {['sparsehpc', *words]!r}\n"
        "code = 0\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    code = end.code or 0\n"
        "sys.stderr.write('LOADED' + json.dumps([code, sorted({n.partition('.')[0] for n in sys.modules})]))\n"
    )
    environment = {**os.environ, "SPARSEHPC_HOME": str(folder / "home")}
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    code, modules = json.loads(answer.stderr.rpartition("LOADED")[2])
    assert code == 0, answer.stderr
    return set(modules)


def test_help_loads_next_to_nothing(tmp_path: Path) -> None:
    """So that it answers at once: neither numerics nor tables nor validation."""
    heavy = {*HEAVY, "numpy", "pandas", "pyarrow", "dask", "matplotlib", "pydantic", "submitit", "rich"}
    assert not loaded_by(tmp_path, "--help") & heavy
    # Typer itself looks at pydantic where a verb has parameters.
    assert not loaded_by(tmp_path, "run", "--help") & (heavy - {"pydantic"})


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "reference"],
        ["plan", "smoke", "--cells", "--json"],
        ["schema"],
        ["init", "new.toml"],
        ["ls"],
        ["submit", "reference", "--profile", "generic-gpu", "--dry-run"],
    ],
    ids=" ".join,
)
def test_verbs_of_a_login_node_load_no_torch(tmp_path: Path, words: list[str]) -> None:
    assert not loaded_by(tmp_path, *words) & set(HEAVY)


def test_verbs_that_read_a_run_load_no_torch(tmp_path: Path) -> None:
    """A run folder without any finished cell is enough: what is read is the same."""
    make = (
        "from pathlib import Path\n"
        "from jobs.folder import open_run\nfrom jobs.plan import make_plan\nfrom jobs.study import *\n"
        "study = load_study(find_study('reference'))\n"
        "open_run(Path('run'), study, make_plan(study).cells)\n"
    )
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    for words in (["status", "run"], ["aggregate", "run"], ["report", "run"]):
        assert not loaded_by(tmp_path, *words) & set(HEAVY), words


PICKLERS = ("pickle", "cloudpickle", "dill", "marshal", "joblib")
UNPICKLES = ("Unpickler", "read_pickle", "pickle_load")


def calls_that_run_code(tree: ast.AST) -> list[str]:
    """Calls through which a file could run code: eval and exec, pickles of any kind, a hub's code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            found += [] if ast.unparse(node.value) == "False" else [f"{node.arg}={ast.unparse(node.value)}"]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        first, last = name.partition(".")[0], name.rpartition(".")[2]
        unpickles = first in PICKLERS and last in ("load", "loads")
        if unpickles or name in ("eval", "exec", "compile", "__import__") or last in UNPICKLES:
            found.append(name)
        elif name == "torch.load" and not any(
            word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
            for word in node.keywords
        ):
            found.append("torch.load without weights_only=True")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)", "exec(x)", "pickle.load(f)", "pickle.loads(b)", "cloudpickle.loads(b)", "pickle.Unpickler(f)",
        "pd.read_pickle(f)", "utils.pickle_load(f)", "torch.load(f)", "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=w)", "np.load(f, allow_pickle=True)", "M.from_config(c, trust_remote_code=t)",
    ],
)  # fmt: skip
def test_calls_that_run_code_are_seen(text: str) -> None:
    assert calls_that_run_code(ast.parse(text))


@pytest.mark.parametrize("text", ["torch.load(f, weights_only=True)", "model.eval()", "json.loads(b)", "re.compile(p)"])
def test_calls_that_do_not_are_not(text: str) -> None:
    assert calls_that_run_code(ast.parse(text)) == []


def test_files_never_run_code() -> None:
    """Only a job reads a pickle, its own submission's payload, after its owner and mode were checked."""
    found = {name: calls_that_run_code(ast.parse(path.read_text(encoding="utf-8"))) for name, path in MODULES.items()}
    assert {name: calls for name, calls in found.items() if calls} == {
        "slurm.task": ["pickle.load"],
        # Results of the benchmark's own jobs, of a moment ago.
        "jobs.bench.dispatch": ["pickle_load"],
    }

"""A tiny study of an untrained model, run once a session, and the command line in this process."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TINY = """\
[study]
name = "tiny"
seed = 7

[[models]]
id = "random:model"
resource = "small"

[grid]
methods = ["magnitude"]
sparsities = [0.5]
variants = ["masked", "csr"]

[evaluation]
corpus = "lines:texts.txt"
windows = 3
window_tokens = 24

[resources.small]
cpus = 1
memory_gib = 1
minutes = 15
"""
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
TEXTS = "The mill stands by the river.\nSeven geese crossed the road at noon.\nA letter came, late and wet.\n"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command line call came to."""

    code: int
    out: str
    err: str


def write_study(folder: Path, text: str = TINY) -> Path:
    """Write a study, its model's config and its texts into a folder."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "texts.txt").write_text(TEXTS, encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SPARSEHPC_HOME of the whole session; never the user's own."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("SPARSEHPC_HOME")
    os.environ["SPARSEHPC_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["SPARSEHPC_HOME"]
    else:
        os.environ["SPARSEHPC_HOME"] = before


@pytest.fixture(autouse=True)
def own_home(session_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEHPC_HOME", str(session_home))
    return session_home


@pytest.fixture(autouse=True)
def kept_environment() -> Iterator[None]:
    """Jobs set thread and offline variables in their process, which here is the test's own."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def finished_run(session_home: Path, tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the tiny study, complete; copy it before changing anything."""
    from jobs.run import run_study

    before = dict(os.environ)
    out = tmp_path_factory.mktemp("runs") / "tiny"
    outcome = run_study(tiny_study, executor="debug", out=out, quiet=True)
    os.environ.clear()
    os.environ.update(before)
    assert outcome.states == {"done": 3}
    return out


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to break."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Call the command line as ``main`` does, in this process."""

    def call(*words: str | Path) -> Answer:
        from jobs.cli import main

        monkeypatch.setattr("sys.argv", ["sparsehpc", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERMINAL_WIDTH", "100")
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return call

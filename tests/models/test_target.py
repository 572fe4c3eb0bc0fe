"""What model ids mean."""

from __future__ import annotations

import json

import pytest

from sparsehpc.core.errors import UserError
from sparsehpc.models.home import home as home_folder
from sparsehpc.models.home import model_folder, safe_name
from sparsehpc.models.target import resolve


@pytest.fixture
def config_folder(tmp_path, tiny):
    folder = tmp_path / "some model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny["llama"]))
    return folder


def test_forms(home, config_folder, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    kinds = {
        "smollm2-135m": "package",
        "opt-125m": "hub",
        "facebook/opt-125m": "hub",
        "someone/some-model": "hub",
        str(config_folder): "folder",
        str(tmp_path / "a.gguf"): "gguf",
        "random:opt-125m": "random",
        "random:facebook/opt-125m": "random",
        f"random:{config_folder}": "random",
    }
    assert {model: resolve(model).kind for model in kinds} == kinds
    folders = {resolve(model).folder for model in kinds}
    # opt-125m is written in two ways, trained and random.
    assert len(folders) == len(kinds) - 2
    assert all(folder.parent == home / "models" for folder in folders)


def test_short_name_is_the_pinned_hub_model(home):
    target = resolve("opt-125m")
    assert target.model == "facebook/opt-125m"
    assert target.revision == "27dcfa74d334bc871f3234de431e71c6eeba5dd6"
    assert resolve("facebook/opt-125m", "main").revision == "main"
    assert resolve("someone/some-model").revision == "main"


def test_relative_and_absolute_paths_are_one_folder(home, config_folder, monkeypatch):
    monkeypatch.chdir(config_folder.parent)
    assert resolve("./some model").folder == resolve(str(config_folder)).folder


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smolm2-135m", "did you mean 'smollm2-135m'"),
        ("opt125m", "did you mean 'opt-125m'"),
        ("facebook/../../etc", "legal: a shipped name"),
        ("../../etc/passwd", "unknown model"),
        ("a/b/c", "random:NAME"),
        ("", "unknown model|holds no config.json"),
        ("random:", "unknown model"),
        ("random:pythia410m", "did you mean 'pythia-410m'"),
        ("nowhere.gguf", "there is no file"),
        ("/nowhere/at/all", "unknown model"),
    ],
)
def test_unknown(home, model, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        resolve(model)


def test_folder_without_config(home, tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("revision", ["../x", "a/../b", "-x", "a b", "~"])
def test_bad_revisions(home, revision):
    with pytest.raises(UserError, match="no revision"):
        resolve("facebook/opt-125m", revision)


def test_only_hub_models_have_revisions(home):
    with pytest.raises(UserError, match="takes no revision"):
        resolve("random:opt-125m", "main")


@pytest.mark.parametrize("text", ["../../etc", "/abs", "..", ".", "", "a/../b", "~root", "x\x00y", "é", "a" * 500])
def test_names_stay_inside(home, text):
    name = safe_name(text)
    assert "/" not in name
    assert name not in ("", ".", "..")
    assert len(name) <= 120
    assert model_folder(text).parent == home / "models"


def test_link_out_of_home_is_refused(home, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (home / "models").mkdir(parents=True)
    (home / "models" / "a--b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link that leaves"):
        resolve("a/b")


def test_models_folder_itself_may_be_a_link(home, tmp_path):
    (tmp_path / "scratch").mkdir()
    home.mkdir()
    (home / "models").symlink_to(tmp_path / "scratch")
    assert resolve("a/b").folder == home / "models" / "a--b"


def test_default_home(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSEHPC_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home_folder() == tmp_path / "sparsehpc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_folder() == tmp_path / ".cache" / "sparsehpc"

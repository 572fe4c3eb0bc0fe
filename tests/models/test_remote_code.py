"""Python code that comes with a model is never imported: not to prepare it, not to run it, not for its tokenizer."""

from __future__ import annotations

import json

import pytest

from sparsehpc.core.errors import UserError
from sparsehpc.models.snapshot import open_snapshot
from sparsehpc.models.sources import prepare

HOSTILE = """
from pathlib import Path
Path({marker!r}).write_text("this model's own code was run")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizer as Tokenizer
"""


@pytest.fixture
def hostile(saved, tiny, tmp_path):
    """A model folder whose files all point at code of its own; the folder, and what that code would leave."""
    folder, _ = saved(tiny["llama"])
    marker = tmp_path / "was-run"
    (folder / "own.py").write_text(HOSTILE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder, marker


def test_the_code_would_be_run_by_who_trusts_it(hostile, monkeypatch, tmp_path):
    """The trap is one: transformers steps into it when it is told to."""
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    folder, marker = hostile
    assert AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type == "llama"
    assert not marker.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    get_class_from_dynamic_module("own.Config", str(folder))
    assert marker.exists()


def test_a_known_family_is_walked_without_it(home, hostile):
    from sparsehpc.models.stream import LayerWalk

    folder, marker = hostile
    prepare(str(folder))
    snapshot = open_snapshot(str(folder))
    walk = LayerWalk(snapshot)
    assert type(walk.model).__module__.startswith("transformers.models.llama")
    assert not list(snapshot.path.glob("*.py"))
    assert not marker.exists()


def test_an_unknown_family_is_refused(home, hostile):
    folder, marker = hostile
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    with pytest.raises(UserError, match="unknown model family") as error:
        prepare(str(folder))
    assert "code that comes with a model is never run" in str(error.value)
    assert not marker.exists()


def test_a_tokenizer_that_is_only_code_is_refused(home, hostile):
    folder, marker = hostile
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer that can be converted"):
        prepare(str(folder))
    assert not marker.exists()

"""Snapshots: what is read, and what is noticed."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch

from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.models.random_weights import write_random_snapshot
from sparsehpc.models.snapshot import Snapshot, is_prepared, open_snapshot, structure_of
from sparsehpc.models.weight_files import ShardWriter


@pytest.fixture
def snapshot(tmp_path, tiny):
    return write_random_snapshot(tiny["llama"], tmp_path / "snapshot", seed=3)


def test_headers_are_the_structure(snapshot):
    assert [(n, shape) for n, (shape, _, _) in snapshot.headers().items()] == [
        (p.name, p.shape) for p in snapshot.structure.unique
    ]
    assert {dtype for _, dtype, _ in snapshot.headers().values()} == {"float32"}


def test_read_tied_converted_and_in_order(snapshot):
    names = ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"]
    read = snapshot.read(names, dtype="bfloat16")
    assert list(read) == names
    assert all(t.dtype == torch.bfloat16 for t in read.values())
    assert torch.equal(read["lm_head.weight"], read["model.embed_tokens.weight"])
    assert torch.equal(read["lm_head.weight"], snapshot.read(["lm_head.weight"])["lm_head.weight"].bfloat16())
    assert not snapshot.read([])


def test_read_unknown(snapshot):
    with pytest.raises(UserError, match=r"did you mean 'model\.norm\.weight'"):
        snapshot.read(["model.norm.wieght"])


def test_transformers_loads_it(snapshot):
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(snapshot.path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = model.state_dict()
    read = snapshot.read(p.name for p in snapshot.structure.parameters)
    assert state.keys() == read.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in read.items())


def test_a_snapshot_folder_is_a_model(home, snapshot):
    opened = open_snapshot(str(snapshot.path))
    assert opened.digest == snapshot.digest
    assert not opened.trained
    assert is_prepared(str(snapshot.path))
    assert structure_of(str(snapshot.path)) == snapshot.structure
    # Jobs are sent to other processes.
    assert pickle.loads(pickle.dumps(opened)) == opened


def test_not_prepared_names_the_command(home):
    with pytest.raises(UserError, match=r"where there is internet.*: sparsehpc prepare facebook/opt-125m$"):
        open_snapshot("opt-125m")
    with pytest.raises(UserError, match=r"sparsehpc prepare facebook/opt-125m --revision abc$"):
        open_snapshot("opt-125m", "abc")
    with pytest.raises(UserError, match=r"run: sparsehpc prepare random:opt-125m$"):
        open_snapshot("random:opt-125m")
    with pytest.raises(UserError, match="known only once it is prepared"):
        structure_of("someone/some-model")
    assert not is_prepared("opt-125m")
    assert not home.exists()


def _weights(snapshot):
    return snapshot.path / snapshot.weight_files[0]


def test_truncated_shard(snapshot):
    path = _weights(snapshot)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated.*\n.*sparsehpc prepare"):
        Snapshot.load(snapshot.path).headers()
    with pytest.raises(UserErrors, match="bytes, expected"):
        snapshot.verify()


def test_missing_shard(snapshot):
    _weights(snapshot).unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        Snapshot.load(snapshot.path).read(["model.norm.weight"])
    with pytest.raises(UserErrors, match="missing"):
        snapshot.verify()


def test_one_flipped_bit_is_found(snapshot):
    snapshot.verify()
    path = _weights(snapshot)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserErrors, match="checksum"):
        Snapshot.load(snapshot.path).verify()


def test_weights_of_another_config(snapshot):
    config = json.loads((snapshot.path / "config.json").read_text())
    text = json.dumps(config | {"intermediate_size": 20})
    manifest = json.loads((snapshot.path / "snapshot.json").read_text())
    manifest["files"]["config.json"]["bytes"] = len(text)
    (snapshot.path / "config.json").write_text(text)
    (snapshot.path / "snapshot.json").write_text(json.dumps(manifest))
    with pytest.raises(UserErrors, match=r"up_proj\.weight has shape \(24, 16\), the config says \(20, 16\)"):
        Snapshot.load(snapshot.path).headers()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 99}', "null"])
def test_unreadable_manifest(snapshot, content):
    (snapshot.path / "snapshot.json").write_text(content)
    with pytest.raises(UserError, match="no readable snapshot"):
        Snapshot.load(snapshot.path)


def test_reading_writes_nothing(home, snapshot):
    def listing():
        return {p: p.stat().st_mtime_ns for p in [snapshot.path, *snapshot.path.rglob("*")]}

    before = listing()
    for path in [*snapshot.path.rglob("*"), snapshot.path]:
        path.chmod(0o555)
    opened = open_snapshot(str(snapshot.path))
    opened.verify()
    opened.read(["model.norm.weight"])
    assert listing() == before
    snapshot.path.chmod(0o755)


def test_tensors_spread_over_shards(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(ShardWriter.__init__, "__defaults__", (5000,))
    many = write_random_snapshot(tiny["gpt_neox"], tmp_path / "many", seed=3)
    monkeypatch.undo()
    one = write_random_snapshot(tiny["gpt_neox"], tmp_path / "one", seed=3)
    assert len(many.weight_files) > 3
    assert len(one.weight_files) == 1
    names = [p.name for p in one.structure.parameters]
    left, right = many.read(names), one.read(names)
    assert all(torch.equal(left[n], right[n]) for n in names)


def test_weights_are_readable_as_the_umask_says(tmp_path, tiny):

    before = os.umask(0o027)
    try:
        snapshot = write_random_snapshot(tiny["llama"], tmp_path / "shared", 0)
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in snapshot.path.glob("*.safetensors")}
    assert set(modes.values()) == {"0o640"}

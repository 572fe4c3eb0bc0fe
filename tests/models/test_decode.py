"""The lean decoder gives the assembled model's logits and tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import FAMILIES, LLAMA

from sparsehpc.compress import Compression
from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Pruning
from sparsehpc.formats import kernels
from sparsehpc.models.assemble import assemble
from sparsehpc.models.decode import Decoder

MAGNITUDE = Pruning(method="magnitude", pattern="unstructured", sparsity="0.5")
PROMPT = list(range(7, 20))
CONFIGS = {
    "llama": LLAMA,
    "llama-untied": FAMILIES["llama-untied"],
    "all-heads": LLAMA | {"num_key_value_heads": 4},
    "qwen2": LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "wide-head": LLAMA | {"head_dim": 32},
    "odd": LLAMA
    | {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "intermediate_size": 70}
    | {"vocab_size": 333, "attention_bias": True, "mlp_bias": True},
}


def build(snapshot, variant, pruning=MAGNITUDE, fuse=True, dtype="float32"):
    sections = Compression(snapshot, pruning, variant, dtype=dtype).sections()
    return assemble(snapshot.path, snapshot.structure, dtype, sections, fuse=fuse)


@torch.inference_mode()
def whole(model, ids):
    return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("variant", ["bitmap", "csr", "masked", "auto"])
def test_logits_equal_the_models(config, variant, tiny_snapshot):
    model = build(tiny_snapshot(CONFIGS[config]), variant)
    decoder = Decoder(model, 40)
    ids = list(PROMPT)
    for _ in range(12):
        logits = decoder.feed(ids if decoder.position == 0 else ids[-1:])
        # Sums of at most 128 terms in another order, three layers deep, on logits of order 1 to 10.
        torch.testing.assert_close(logits, whole(model, ids)[-1], rtol=1e-4, atol=1e-4)
        ids.append(int(logits.argmax()))


def test_tokens_equal_those_of_transformers(tiny_snapshot):
    model = build(tiny_snapshot(LLAMA), "bitmap")
    want = model.generate(torch.tensor([PROMPT]), max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    decoder = Decoder(model, 40)
    for _ in range(2):  # the room is used again
        assert decoder.generate(PROMPT, 20) == want[0, len(PROMPT) :].tolist()


def test_unfused_models_and_torch_kernels(tiny_snapshot, monkeypatch):
    want = Decoder(build(tiny_snapshot(LLAMA), "bitmap"), 40).generate(PROMPT, 8)
    assert Decoder(build(tiny_snapshot(LLAMA), "bitmap", fuse=False), 40).generate(PROMPT, 8) == want
    monkeypatch.setenv("SPARSEHPC_ISA", "torch")
    assert Decoder(build(tiny_snapshot(LLAMA), "bitmap"), 40).generate(PROMPT, 8) == want


@pytest.mark.parametrize("isa", kernels.available())
def test_one_call_a_token_on_every_instruction_set(isa, tiny_snapshot, monkeypatch):
    monkeypatch.setenv("SPARSEHPC_ISA", isa)
    model = build(tiny_snapshot(CONFIGS["qwen2"]), "auto")
    decoder = Decoder(model, 40)
    assert decoder.compiled
    ids = [*PROMPT, *decoder.generate(PROMPT, 10)]
    torch.testing.assert_close(decoder.feed(ids[-1:]), whole(model, ids)[-1], rtol=1e-4, atol=1e-4)


def test_what_has_no_kernel_goes_product_by_product(tiny_snapshot):
    assert not Decoder(build(tiny_snapshot(LLAMA), "csr"), 20).compiled  # torch multiplies
    assert not Decoder(build(tiny_snapshot(LLAMA), "bitmap", dtype="bfloat16"), 20).compiled
    assert not Decoder(build(tiny_snapshot(LLAMA | {"hidden_act": "gelu"}), "bitmap"), 20).compiled


def test_bfloat16(tiny_snapshot):
    model = build(tiny_snapshot(LLAMA), "bitmap", dtype="bfloat16")
    # Eight bits of mantissa, three layers.
    torch.testing.assert_close(Decoder(model, 20).feed(PROMPT), whole(model, PROMPT)[-1], rtol=0.1, atol=0.15)


def test_what_it_cannot_do_is_said(tiny_snapshot):
    with pytest.raises(UserError, match="gpt_neox"):
        Decoder(build(tiny_snapshot(FAMILIES["gpt_neox"]), "bitmap"), 10)
    model = build(tiny_snapshot(LLAMA), "bitmap")
    with pytest.raises(UserError, match="128"):
        Decoder(model, 129)
    decoder = Decoder(model, 4)
    with pytest.raises(ValueError, match="room"):
        decoder.feed(PROMPT)
    decoder.feed([1, 2])
    with pytest.raises(ValueError, match="one token"):
        decoder.feed([1, 2])
    with pytest.raises(UserError, match="at least one"):
        Decoder(model, 0)
    with pytest.raises(UserError, match="on the CPU"):
        Decoder(model.to("meta"), 10)


def test_rotary_embeddings_that_depend_on_the_length(tiny_snapshot):
    rope = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    yarn = build(tiny_snapshot(LLAMA | {"rope_parameters": rope | {"rope_type": "yarn"}}), "bitmap")
    longrope = rope | {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    short = build(tiny_snapshot(LLAMA | {"rope_parameters": longrope}), "bitmap")
    for model, tokens in ((yarn, 40), (short, 32)):
        decoder = Decoder(model, tokens)
        ids = [*PROMPT, *decoder.generate(PROMPT, 10)]
        torch.testing.assert_close(decoder.feed(ids[-1:]), whole(model, ids)[-1], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="rotary embedding changes on the way to 33 tokens"):
        Decoder(short, 33)


def test_the_users_default_dtype_and_device_are_not_the_kernels(tiny_snapshot):
    decoder = Decoder(build(tiny_snapshot(LLAMA), "bitmap"), 40)
    assert decoder.compiled
    decoder.feed(PROMPT)
    want = decoder.feed([3])
    try:
        for dtype in (torch.float64, torch.bfloat16):
            decoder.position -= 1
            torch.set_default_dtype(dtype)
            assert torch.equal(decoder.feed([3]), want)
    finally:
        torch.set_default_dtype(torch.float32)
    decoder.position -= 1
    with torch.device("meta"):
        assert torch.equal(decoder.feed([3]), want)


def test_weights_packed_for_another_instruction_set(tiny_snapshot, monkeypatch):
    monkeypatch.setenv("SPARSEHPC_ISA", "portable")
    if len(kernels.available()) < 2:
        pytest.skip("one instruction set")
    model = build(tiny_snapshot(LLAMA), "bitmap")
    want = Decoder(model, 40).generate(PROMPT, 8)
    monkeypatch.delenv("SPARSEHPC_ISA")
    decoder = Decoder(model, 40)  # the tied head is dense, and taken as it is now
    assert not decoder.compiled
    assert decoder.generate(PROMPT, 8) == want


def test_an_unknown_token_leaves_the_sequence_as_it_was(tiny_snapshot):
    decoder = Decoder(build(tiny_snapshot(LLAMA), "bitmap"), 40)
    decoder.feed(PROMPT)
    with pytest.raises(IndexError):
        decoder.feed([10**6])
    assert decoder.position == len(PROMPT)


def test_a_copy_is_another_sequence(tiny_snapshot):
    decoder = Decoder(build(tiny_snapshot(LLAMA), "bitmap"), 40)
    decoder.feed(PROMPT)
    branch = copy.deepcopy(decoder)
    assert branch.compiled
    branch.feed([1])
    decoder.feed([2])
    assert torch.equal(branch.feed([3]), _after(decoder, [*PROMPT, 1, 3]))


def _after(decoder, ids):
    decoder.reset()
    decoder.feed(ids[: len(PROMPT)])
    return [decoder.feed([token]) for token in ids[len(PROMPT) :]][-1]


def test_vectors_of_another_dtype_or_layout_and_a_model_that_moves(tiny_snapshot):
    model = build(tiny_snapshot(CONFIGS["qwen2"]), "bitmap")
    want = _after(Decoder(model, 40), [*PROMPT, 1, 2])
    norm = model.model.norm
    norm.weight.data = norm.weight.data.repeat_interleave(2)[::2]
    assert not norm.weight.is_contiguous()
    assert torch.equal(_after(Decoder(model, 40), [*PROMPT, 1, 2]), want)
    norm.bfloat16()
    decoder = Decoder(model, 40)
    mixed = _after(decoder, [*PROMPT, 1, 2])
    torch.testing.assert_close(mixed, want, rtol=0.02, atol=0.02)  # a norm's weights to 8 bits
    model.to(torch.bfloat16)
    assert torch.equal(_after(decoder, [*PROMPT, 1, 2]), mixed)

    model = build(tiny_snapshot(CONFIGS["qwen2"]), "bitmap")
    decoder = Decoder(model, 40)
    model.share_memory()  # frees what the addresses point to
    with pytest.raises(RuntimeError, match="make the decoder again"):
        decoder.feed(PROMPT)
    assert torch.equal(_after(Decoder(model, 40), [*PROMPT, 1, 2]), want)


def test_matrices_that_do_not_fit_the_config_are_refused(tiny_snapshot):
    for change in ({"intermediate_size": 120}, {"num_attention_heads": 6}, {"num_key_value_heads": 1}):
        model = build(tiny_snapshot(LLAMA), "bitmap")
        model.config.update(change)
        with pytest.raises(ValueError, match="are expected"):
            Decoder(model, 40)

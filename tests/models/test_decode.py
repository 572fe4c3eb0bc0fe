"""The lean decoder gives the assembled model's logits and tokens."""

from __future__ import annotations

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

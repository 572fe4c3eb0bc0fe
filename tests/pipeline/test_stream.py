"""The layer walk gives the whole model's logits, for every family, bit for bit."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from sparsehpc.models.stream import LayerWalk

LENGTHS = (5, 17, 32, 17, 1)


def streamed_logits(walk: LayerWalk, windows: list[torch.Tensor]) -> list[torch.Tensor]:
    walk.load_outside()
    embedded = [walk.embed(ids[None]) for ids in windows]
    walk.unload_outside()
    hidden = [pair[0] for pair in embedded]
    for layer in range(walk.structure.layers):
        walk.load(layer)
        hidden = [walk.run(layer, h, call) for h, (_, call) in zip(hidden, embedded, strict=True)]
        walk.unload(layer)
    walk.load_outside()
    return [walk.head(h)[0] for h in hidden]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_streamed_logits_equal_the_whole_models(family, dtype, tiny_snapshot):
    snapshot = tiny_snapshot(FAMILIES[family])
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randint(0, 512, (n,), generator=generator) for n in LENGTHS]
    whole = AutoModelForCausalLM.from_pretrained(snapshot.path, dtype=getattr(torch, dtype)).eval()
    for parameter in whole.parameters():
        # Products of single tokens depend on how memory is aligned, and a mapped file aligns it otherwise.
        parameter.data = parameter.data.clone()
    expected = [whole(ids[None], use_cache=False).logits[0] for ids in windows]
    for got, want in zip(streamed_logits(LayerWalk(snapshot, dtype), windows), expected, strict=True):
        assert got.dtype == want.dtype
        # The same operations in the same order on the same shapes: no tolerance is needed.
        assert torch.equal(got, want)


@torch.inference_mode()
def test_only_one_layer_holds_weights(tiny_snapshot):
    walk = LayerWalk(tiny_snapshot(FAMILIES["llama"]))
    walk.load(1)

    def held() -> set[int]:
        return {
            layer
            for layer in range(walk.structure.layers)
            for p in walk.structure.in_layer(layer)
            if p.kind == "linear" and walk._linears[p.name].stored is not None
        }

    assert held() == {1}
    walk.unload(1)
    assert held() == set()

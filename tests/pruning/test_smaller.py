"""``sparsehpc densify --smaller``: plain transformers opens the smaller model, and its logits are the masked one's."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from jobs.cli import _add_verbs, app
from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.family import structure_from_config
from sparsehpc.models.packed_writer import RECIPE
from sparsehpc.pretrained import compress

TEXT = Calibration(corpus="python-docs", windows=2, window_tokens=24)
IDS = torch.arange(3, 40)[None]
NEIGHBOURS = {
    name: FAMILIES["llama"] | {"model_type": name, "architectures": [f"{kind}ForCausalLM"], "head_dim": 16}
    for name, kind in (("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3"))
}
CONFIGS = FAMILIES | NEIGHBOURS
LAYER_TYPES = {"layer_types": ["full_attention"] * 3}


def densify(*words):
    _add_verbs()
    return CliRunner().invoke(app, ["densify", *map(str, words)], catch_exceptions=False)


def pack(snapshot, folder, method, pattern, sparsity="0.5", variant="masked"):
    needs = method in ("wanda", "flap", "block-influence")
    targets = {"heads": ("attention",), "neurons": ("mlp",)}.get(pattern, ("attention", "mlp"))
    pruning = Pruning(
        method=method, pattern=pattern, sparsity=sparsity, targets=targets, calibration=TEXT if needs else None
    )
    compress(snapshot, pruning, variant, folder)
    return folder


def opened(folder):
    """A model as anybody opens it, and its logits; nothing may be missing or left over."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    with torch.inference_mode():
        return model, model.eval()(IDS).logits


@pytest.mark.parametrize(
    ("family", "method", "pattern", "changed"),
    [
        ("llama", "flap", "neurons", {"intermediate_size"}),
        ("llama", "flap", "heads", None),
        ("llama", "magnitude", "heads", {"num_attention_heads", "num_key_value_heads", "head_dim"}),
        ("llama-untied", "wanda", "neurons", {"intermediate_size"}),
        ("llama", "block-influence", "layers", {"num_hidden_layers"}),
        ("opt", "flap", "neurons", {"ffn_dim"}),
        ("opt", "block-influence", "layers", {"num_hidden_layers"}),
        ("gpt_neox", "flap", "neurons", {"intermediate_size"}),
        ("gpt_neox", "block-influence", "layers", {"num_hidden_layers"}),
        ("mistral", "magnitude", "heads", {"num_attention_heads", "num_key_value_heads", "head_dim"}),
        ("qwen2", "magnitude", "heads", {"num_attention_heads", "num_key_value_heads", "head_dim"}),
        ("qwen2", "block-influence", "layers", {"num_hidden_layers", "layer_types"}),
        ("qwen3", "wanda", "heads", {"num_attention_heads", "num_key_value_heads", "head_dim"}),
    ],
)
def test_transformers_opens_a_smaller_model_with_the_same_logits(
    family, method, pattern, changed, tiny_snapshot, tmp_path
):
    config = CONFIGS[family] | (LAYER_TYPES if changed and "layer_types" in changed else {})
    packed = pack(tiny_snapshot(config), tmp_path / "packed", method, pattern)
    assert densify(packed, "--out", tmp_path / "masked").exit_code == 0
    answer = densify(packed, "--out", tmp_path / "smaller", "--smaller", "--json")
    assert answer.exit_code == 0
    said = json.loads(answer.stdout)
    if changed is not None:
        assert set(said["smaller"]) == changed
    masked, want = opened(tmp_path / "masked")
    model, found = opened(tmp_path / "smaller")
    # The same sums without their zeros, in another order: float32 rounding of the largest logits.
    assert torch.allclose(found, want, atol=1e-5 * float(want.abs().max()))
    params = sum(p.numel() for p in model.parameters())
    assert params == said["params"]["after"] < sum(p.numel() for p in masked.parameters())
    if pattern == "layers":
        assert model.config.num_hidden_layers == 2
    assert json.loads((tmp_path / "smaller" / RECIPE).read_text())["smaller"]["config"].keys() == said["smaller"].keys()


def test_what_flap_gave_the_bias_is_in_the_smaller_llama(tiny_snapshot, tmp_path):
    packed = pack(tiny_snapshot(FAMILIES["llama"]), tmp_path / "packed", "flap", "neurons")
    densify(packed, "--out", tmp_path / "smaller", "--smaller")
    model, found = opened(tmp_path / "smaller")
    assert model.config.mlp_bias is True
    # The biases that came along with the one that FLAP gave are zero and have the smaller shape.
    mlp = model.model.layers[0].mlp
    assert not mlp.up_proj.bias.any()
    assert mlp.up_proj.bias.shape == (model.config.intermediate_size,)
    with torch.inference_mode():
        for layer in model.model.layers:
            layer.mlp.down_proj.bias.zero_()
        assert not torch.allclose(model(IDS).logits, found, atol=1e-3 * float(found.abs().max()))


def test_the_shape_and_what_stayed_are_said(tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(FAMILIES["llama"])
    packed = pack(snapshot, tmp_path / "packed", "flap", "neurons", "0.3", variant="compact")
    answer = densify(packed, "--out", tmp_path / "smaller", "--smaller")
    made = structure_from_config(json.loads((tmp_path / "smaller" / "config.json").read_text()))
    assert f"{snapshot.structure.params_total:,} -> {made.params_total:,} parameters" in answer.stdout
    assert "intermediate_size 128 -> " in answer.stdout
    assert "zeros stay: a config has one number of neurons for all layers, and one layer lost " in answer.stdout


@pytest.mark.parametrize(
    ("family", "method", "pattern", "reason"),
    [
        ("opt", "magnitude", "heads", "a smaller opt cannot leave out heads: its config ties their size to the width"),
        ("gpt_neox", "magnitude", "heads", "a smaller gpt_neox cannot leave out heads"),
        ("llama", "magnitude", "unstructured", "no head, neuron or layer is zero"),
        ("mistral", "flap", "neurons", r"a mistral model in transformers has no .*down_proj\.bias"),
    ],
)
def test_what_cannot_be_smaller_says_why_and_writes_nothing(family, method, pattern, reason, tiny_snapshot, tmp_path):
    packed = pack(tiny_snapshot(CONFIGS[family]), tmp_path / "packed", method, pattern)
    with pytest.raises(UserError, match=reason):
        densify(packed, "--out", tmp_path / "smaller", "--smaller")
    assert not (tmp_path / "smaller").exists()

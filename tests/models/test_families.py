"""Structures equal the module trees that transformers builds."""

from __future__ import annotations

import pytest

from sparsehpc.core.errors import UserError
from sparsehpc.models.family import FAMILIES, structure_from_config

TINY_OPT = {
    "model_type": "opt",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "ffn_dim": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "word_embed_proj_dim": 16,
}
TINY_NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
}
TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 12,
}
CONFIGS = {
    "opt": TINY_OPT,
    "opt-untied": TINY_OPT | {"tie_word_embeddings": False},
    "opt-350m-like": TINY_OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False},
    "opt-no-final-norm": TINY_OPT | {"_remove_final_layer_norm": True},
    "opt-no-bias": TINY_OPT | {"enable_bias": False},
    "opt-no-affine": TINY_OPT | {"layer_norm_elementwise_affine": False},
    "neox": TINY_NEOX,
    "neox-tied": TINY_NEOX | {"tie_word_embeddings": True},
    "neox-no-attention-bias": TINY_NEOX | {"attention_bias": False, "use_parallel_residual": False},
    "llama": TINY_LLAMA,
    "llama-tied": TINY_LLAMA | {"tie_word_embeddings": True},
    "llama-biases": TINY_LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-head-dim": TINY_LLAMA | {"head_dim": 6},
    "llama-no-gqa": {k: v for k, v in TINY_LLAMA.items() if k != "num_key_value_heads"},
    "mistral": TINY_LLAMA | {"model_type": "mistral"},
    "qwen2": TINY_LLAMA | {"model_type": "qwen2"},
    "qwen2-tied": TINY_LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": TINY_LLAMA | {"model_type": "qwen3", "head_dim": 8},
    "qwen3-biases": TINY_LLAMA | {"model_type": "qwen3", "attention_bias": True},
    # Nothing but the family: transformers' own defaults must be ours.
    "opt-defaults": {"model_type": "opt"},
    "neox-defaults": {"model_type": "gpt_neox"},
    "llama-defaults": {"model_type": "llama"},
    "mistral-defaults": {"model_type": "mistral"},
    "qwen2-defaults": {"model_type": "qwen2"},
    "qwen3-defaults": {"model_type": "qwen3"},
}


def meta_model(config: dict):
    """Module tree of transformers without storage."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    hf_config = AutoConfig.for_model(values.pop("model_type"), **values)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(hf_config)
    model.tie_weights()
    return model


def named_tree(model) -> tuple[list[tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Names and shapes in module order, and the tied ones with the name that owns the storage."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    rows = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        rows.append((name, tuple(parameter.shape)))
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return rows, tied


@pytest.mark.parametrize("name", CONFIGS)
def test_structure_is_the_module_tree(name):
    from torch import nn

    structure = structure_from_config(CONFIGS[name])
    model = meta_model(CONFIGS[name])
    rows, tied = named_tree(model)
    assert [(p.name, p.shape) for p in structure.parameters] == rows
    assert {p.name: p.tied_to for p in structure.parameters if p.tied_to} == tied
    assert structure.params_total == sum(p.numel() for p in model.parameters())
    assert len(model.get_submodule(structure.layers_path)) == structure.layers
    assert structure.vocab_size == model.lm_head.out_features
    for p in structure.parameters:
        module = model.get_submodule(p.module)
        leaf = p.name.rpartition(".")[2]
        if isinstance(module, nn.Linear):
            assert p.kind == ("linear" if leaf == "weight" else "bias"), p
        elif isinstance(module, nn.Embedding):
            assert p.kind == p.group == "embedding", p
        else:
            assert p.kind == p.group == "norm", p
        if p.layer is not None:
            assert p.name.startswith(f"{structure.layers_path}.{p.layer}.")
        assert p.module.endswith(p.projection)


def test_every_family_is_covered():
    assert {CONFIGS[name]["model_type"] for name in CONFIGS} == set(FAMILIES.names())


def test_prunable_are_the_linears_inside_layers():
    structure = structure_from_config(TINY_LLAMA)
    names = [p.name for p in structure.prunable(("attention", "mlp"))]
    assert names[:3] == [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkv"]
    assert len(names) == 14


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt_nexo"}, "did you mean 'gpt_neox'"),
        ({"model_type": None}, "unknown model family"),
        ({"hidden_size": "768"}, "hidden_size = '768'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"hidden_size": 18}, "not a multiple"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_bad_configs_are_named(change, words):
    with pytest.raises(UserError, match=words):
        structure_from_config(TINY_OPT | change)

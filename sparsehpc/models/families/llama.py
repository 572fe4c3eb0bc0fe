"""Llama (Touvron et al. 2023, arXiv:2302.13971) and its neighbours, which differ by a row of a table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsehpc.models.family import FAMILIES, Family, ParameterList
from sparsehpc.models.structure import Structure


@dataclass(frozen=True, slots=True)
class _Traits:
    """Where a neighbour departs from Llama: which biases its config does not decide, and norms on queries and keys."""

    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    query_key_norm: bool = False


def _build(model_type: str, traits: _Traits, config: Mapping[str, Any]) -> Structure:
    hidden, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    head = config["head_dim"] or hidden // heads
    query, key_value = heads * head, (config["num_key_value_heads"] or heads) * head
    wide = config["intermediate_size"]
    qkv_bias = config["attention_bias"] if traits.qkv_bias is None else traits.qkv_bias
    output_bias = config["attention_bias"] if traits.output_bias is None else traits.output_bias
    mlp_bias = config["mlp_bias"] if traits.mlp_bias is None else traits.mlp_bias
    p = ParameterList()
    p.embedding("model.embed_tokens", vocab, hidden)
    for layer in range(layers):
        here = f"model.layers.{layer}"
        for projection, outputs in (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)):
            p.linear(
                f"{here}.self_attn.{projection}",
                "attention",
                outputs,
                hidden,
                bias=qkv_bias,
                layer=layer,
                head_size=head,
            )
        p.linear(f"{here}.self_attn.o_proj", "attention", hidden, query, bias=output_bias, layer=layer, head_size=head)
        if traits.query_key_norm:
            p.norm(f"{here}.self_attn.q_norm", head, bias=False, layer=layer)
            p.norm(f"{here}.self_attn.k_norm", head, bias=False, layer=layer)
        for projection in ("gate_proj", "up_proj"):
            p.linear(f"{here}.mlp.{projection}", "mlp", wide, hidden, bias=mlp_bias, layer=layer)
        p.linear(f"{here}.mlp.down_proj", "mlp", hidden, wide, bias=mlp_bias, layer=layer)
        p.norm(f"{here}.input_layernorm", hidden, bias=False, layer=layer)
        p.norm(f"{here}.post_attention_layernorm", hidden, bias=False, layer=layer)
    p.norm("model.norm", hidden, bias=False)
    p.head("lm_head", vocab, hidden, tied_to="model.embed_tokens.weight" if config["tie_word_embeddings"] else None)
    return Structure(
        model_type=model_type,
        parameters=tuple(p.items),
        layers_path="model.layers",
        layers=layers,
        hidden=hidden,
        vocab_size=vocab,
        max_positions=config["max_position_embeddings"],
        attention_flops_per_context_token=4 * query * layers,
    )


_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": None,
}
_QWEN: dict[str, Any] = {
    **_LLAMA,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_MISTRAL: dict[str, Any] = {
    **_LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
}

#: model_type -> (defaults, traits, GGUF architecture, whether GGUF permutes query and key rows).
_TABLE: dict[str, tuple[dict[str, Any], _Traits, str, bool]] = {
    "llama": (_LLAMA, _Traits(), "llama", True),
    "mistral": (_MISTRAL, _Traits(qkv_bias=False, output_bias=False, mlp_bias=False), "", True),
    "qwen2": (_QWEN, _Traits(qkv_bias=True, output_bias=False, mlp_bias=False), "qwen2", False),
    "qwen3": ({**_QWEN, "head_dim": 128}, _Traits(mlp_bias=False, query_key_norm=True), "qwen3", False),
}

for _model_type, (_defaults, _traits, _architecture, _permuted) in _TABLE.items():
    FAMILIES.register(_model_type)(
        Family(
            model_type=_model_type,
            defaults=_defaults,
            build=functools.partial(_build, _model_type, _traits),
            gguf_architecture=_architecture,
            gguf_permuted=_permuted,
        )
    )

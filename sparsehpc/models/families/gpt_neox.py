"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745), the family of Pythia: fused query-key-value, parallel residual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehpc.models.family import FAMILIES, Family, ParameterList
from sparsehpc.models.structure import Structure


def _build(config: Mapping[str, Any]) -> Structure:
    hidden, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    wide, bias = config["intermediate_size"], config["attention_bias"]
    head = hidden // config["num_attention_heads"]
    p = ParameterList()
    p.embedding("gpt_neox.embed_in", vocab, hidden)
    for layer in range(layers):
        here = f"gpt_neox.layers.{layer}"
        p.norm(f"{here}.input_layernorm", hidden, bias=True, layer=layer)
        p.norm(f"{here}.post_attention_layernorm", hidden, bias=True, layer=layer)
        for projection, outputs in (("query_key_value", 3 * hidden), ("dense", hidden)):
            p.linear(
                f"{here}.attention.{projection}", "attention", outputs, hidden, bias=bias, layer=layer, head_size=head
            )
        p.linear(f"{here}.mlp.dense_h_to_4h", "mlp", wide, hidden, bias=True, layer=layer)
        p.linear(f"{here}.mlp.dense_4h_to_h", "mlp", hidden, wide, bias=True, layer=layer)
    p.norm("gpt_neox.final_layer_norm", hidden, bias=True)
    p.head("lm_head", vocab, hidden, tied_to="gpt_neox.embed_in.weight" if config["tie_word_embeddings"] else None)
    return Structure(
        model_type="gpt_neox",
        parameters=tuple(p.items),
        layers_path="gpt_neox.layers",
        layers=layers,
        hidden=hidden,
        vocab_size=vocab,
        max_positions=config["max_position_embeddings"],
        attention_flops_per_context_token=4 * hidden * layers,
    )


FAMILIES.register("gpt_neox")(
    Family(
        model_type="gpt_neox",
        defaults={
            "vocab_size": 50432,
            "hidden_size": 6144,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "intermediate_size": 24576,
            "max_position_embeddings": 2048,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
        build=_build,
        prefix="gpt_neox.",
        # The head was called embed_out before transformers 5.
        renames=((r"^embed_out\.", "lm_head."),),
    )
)

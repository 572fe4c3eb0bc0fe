"""OPT (Zhang et al. 2022, arXiv:2205.01068): learned positions, LayerNorm; the 350M is post-norm, with projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsehpc.models.family import FAMILIES, Family, ParameterList
from sparsehpc.models.structure import Structure

# transformers adds two rows in front of the learned positions.
_POSITION_OFFSET = 2


def _build(config: Mapping[str, Any]) -> Structure:
    hidden, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    word = config["word_embed_proj_dim"] or hidden
    head = hidden // config["num_attention_heads"]
    bias, affine = config["enable_bias"], config["layer_norm_elementwise_affine"]
    post = not config["do_layer_norm_before"]
    decoder = "model.decoder"
    p = ParameterList()
    p.embedding(f"{decoder}.embed_tokens", vocab, word)
    p.embedding(f"{decoder}.embed_positions", config["max_position_embeddings"] + _POSITION_OFFSET, hidden)
    if word != hidden:
        p.linear(f"{decoder}.project_out", "other", word, hidden, bias=False)
        p.linear(f"{decoder}.project_in", "other", hidden, word, bias=False)
    if affine and config["do_layer_norm_before"] and not config["_remove_final_layer_norm"]:
        p.norm(f"{decoder}.final_layer_norm", hidden, bias=True)
    for layer in range(layers):
        here = f"{decoder}.layers.{layer}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            p.linear(
                f"{here}.self_attn.{projection}",
                "attention",
                hidden,
                hidden,
                bias=bias,
                layer=layer,
                head_size=head,
                post_norm=post,
            )
        if affine:
            p.norm(f"{here}.self_attn_layer_norm", hidden, bias=True, layer=layer)
        p.linear(f"{here}.fc1", "mlp", config["ffn_dim"], hidden, bias=bias, layer=layer, post_norm=post)
        p.linear(f"{here}.fc2", "mlp", hidden, config["ffn_dim"], bias=bias, layer=layer, post_norm=post)
        if affine:
            p.norm(f"{here}.final_layer_norm", hidden, bias=True, layer=layer)
    tied = f"{decoder}.embed_tokens.weight" if config["tie_word_embeddings"] else None
    p.head("lm_head", vocab, word, tied_to=tied)
    return Structure(
        model_type="opt",
        parameters=tuple(p.items),
        layers_path=f"{decoder}.layers",
        layers=layers,
        hidden=hidden,
        vocab_size=vocab,
        max_positions=config["max_position_embeddings"],
        attention_flops_per_context_token=4 * hidden * layers,
    )


FAMILIES.register("opt")(
    Family(
        model_type="opt",
        defaults={
            "vocab_size": 50272,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "ffn_dim": 3072,
            "max_position_embeddings": 2048,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "word_embed_proj_dim": None,
            "num_attention_heads": 12,
            "init_std": 0.02,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "tie_word_embeddings": True,
        },
        build=_build,
        initializer="init_std",
    )
)

"""Tiny configurations of every family, tied and untied, for tests that need a model but no training."""

from __future__ import annotations

from typing import Any

OPT: dict[str, Any] = {
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
#: OPT-350m's odd shape: norm after the block, embeddings narrower than the hidden states.
OPT_POST_NORM = OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 32}
GPT_NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "opt": OPT,
    "opt-untied": OPT | {"tie_word_embeddings": False},
    "opt-post-norm": OPT_POST_NORM,
    "gpt_neox": GPT_NEOX,
    "gpt_neox-sequential": GPT_NEOX | {"use_parallel_residual": False},
    "llama": LLAMA,
    "llama-untied": LLAMA | {"tie_word_embeddings": False},
}

"""Fixtures of the tests of models: a home of their own, and tiny configs."""

from __future__ import annotations

import pytest


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty SPARSEHPC_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("SPARSEHPC_HOME", str(folder))
    return folder


TINY = {
    "opt": {
        "model_type": "opt",
        "vocab_size": 300,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "ffn_dim": 24,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 16,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "vocab_size": 300,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
    },
}


@pytest.fixture
def tiny():
    """Configs of tiny models by family."""
    return TINY


@pytest.fixture
def build_model():
    """Build a transformers model of a config with seeded weights; norms and biases are random too."""

    def build(config):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        values = dict(config)
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.1)
        return model

    return build


@pytest.fixture
def saved(tmp_path, build_model):
    """Save such a model as safetensors with a tokenizer; returns the folder and the model."""
    from sparsehpc.models.byte_tokenizer import write_byte_tokenizer

    def save(config, name="model", **options):
        model = build_model(config)
        folder = tmp_path / name
        model.save_pretrained(folder, **options)
        write_byte_tokenizer(folder, config["vocab_size"], add_bos=False)
        return folder, model

    return save

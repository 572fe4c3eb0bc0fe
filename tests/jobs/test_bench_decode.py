"""The ceiling beside decode speedups, from first principles."""

from __future__ import annotations

import pytest

from jobs.bench.decode import ceiling
from sparsehpc.models.family import structure_from_config

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(("sparsity", "want"), [(0.3, 1.27), (0.5, 1.59), (0.7, 2.12), (0.9, 3.18)])
def test_the_dense_head_limits_the_gain(sparsity, want):
    # 106,168,320 weights are pruned, the head of 28,311,552 is read whole: by hand from 4 bytes and one bit a weight.
    head, pruned = 49152 * 576, 106_168_320
    by_hand = 4 * (head + pruned) / (4 * head + pruned * (4 * (1 - sparsity) + 0.125))
    found = ceiling(structure_from_config(SMOLLM2), sparsity, "float32")
    assert found == pytest.approx(by_hand, rel=1e-12)
    assert found == pytest.approx(want, abs=0.005)

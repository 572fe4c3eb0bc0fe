"""The ceiling beside decode speedups, from first principles."""

from __future__ import annotations

import os

import pytest
import torch
from tiny_models import LLAMA

from jobs.bench import run_suite
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


@pytest.fixture
def keep_threads():
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("keep_threads")
def test_rows_are_of_a_model_from_its_saved_folder(tiny_snapshot, monkeypatch):
    from sparsehpc import pretrained

    opened, plain = [], pretrained.from_pretrained
    monkeypatch.setattr(pretrained, "from_pretrained", lambda folder: (opened.append(folder), plain(folder))[1])
    options = {"model": str(tiny_snapshot(LLAMA).path), "tokens": "3", "sparsities": "50", "compiled": "no"}
    rows = run_suite("decode", options | {"repeats": "2", "threads": "1", "clock": "cpu"})
    assert len(opened) == 1
    assert not opened[0].exists()
    assert [row["baseline"] for row in rows] == ["own dense", "transformers"]
    for row in rows:
        # A value of four bytes and a mask bit for half of the pruned weights; the rest stays dense.
        saved = row["baseline_model_bytes"] - row["model_bytes"]
        assert saved == row["baseline_bytes"] - row["bytes"] > 0
        assert row["largest_error"] < 1e-3

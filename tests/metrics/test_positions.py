"""Behaviour figures: by eye on four tokens, then against plain float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch

from sparsehpc.metrics.base import WindowView
from sparsehpc.metrics.measures.agreement import Agreement
from sparsehpc.metrics.measures.divergence import Divergence
from sparsehpc.metrics.measures.generation import bigrams
from sparsehpc.metrics.measures.likelihood import Likelihood
from sparsehpc.metrics.positions import BLOCK_POSITIONS, dense_positions, positions


def figures(dense_logits, logits, ids, *, every_position=True, masked=None, text_bytes=10):
    dense = dense_positions(dense_logits, ids)
    found = positions(logits, ids, dense_logits, dense)
    counted = len(ids) if every_position else len(ids) - 1
    view = WindowView(0, ids, text_bytes, counted, dense, found, dense_logits, logits, masked)
    return {row.metric: row for kind in (Agreement, Divergence, Likelihood) for row in kind().window(view)}


def test_by_eye():
    # Probabilities 1/2, 1/4, 1/4 written as logits; the cell swaps the first two at the second position.
    half, quarter = math.log(0.5), math.log(0.25)
    dense = torch.tensor([[half, quarter, quarter], [half, quarter, quarter], [quarter, quarter, half]])
    cell = torch.tensor([[half, quarter, quarter], [quarter, half, quarter], [quarter, quarter, half]])
    ids = torch.tensor([2, 0, 1])
    rows = figures(dense, cell, ids, masked=torch.tensor([0, 0, 2]))
    assert (rows["top1_agreement"].numerator, rows["top1_agreement"].denominator) == (2, 3)
    # KL at the second position: 1/2 ln 2 + 1/4 ln 1/2 = 1/4 ln 2.
    assert rows["kl"].numerator == pytest.approx(0.25 * math.log(2), abs=1e-7)
    # The dense choice (token 0) ties with token 2 behind token 1 at the second position: rank 2 by lowest id.
    assert rows["mean_rank"].numerator == 1 + 2 + 1
    # Dense predicts tokens 0 and 1 with 1/2 and 1/4; the cell with 1/2 and 1/2.
    assert rows["nll_dense"].numerator == pytest.approx(math.log(2) + math.log(4), abs=1e-7)
    assert rows["nll"].numerator == pytest.approx(2 * math.log(2), abs=1e-7)
    assert rows["bits_per_byte"].numerator == pytest.approx(2.0, abs=1e-7)
    assert rows["bits_per_byte"].denominator == 10
    counts = {m: rows[m].numerator for m in ("both_right", "dense_only_right", "variant_only_right", "both_wrong")}
    assert counts == {"both_right": 1, "dense_only_right": 0, "variant_only_right": 1, "both_wrong": 0}
    assert rows["top1_differs_from_masked"].numerator == 1


def test_last_position_counts_only_for_documents():
    logits = torch.eye(3)
    ids = torch.tensor([0, 1, 2])
    assert figures(logits, logits, ids)["top1_agreement"].denominator == 3
    assert figures(logits, logits, ids, every_position=False)["top1_agreement"].denominator == 2
    assert figures(logits, logits, ids)["nll"].denominator == 2


def test_ties_take_the_lowest_id():
    dense = dense_positions(torch.zeros(2, 5), torch.tensor([0, 1]))
    assert dense.choice.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_plain_float64(dtype):
    generator = torch.Generator().manual_seed(3)
    tokens, vocabulary = 2 * BLOCK_POSITIONS + 5, 97
    dense_logits = (4 * torch.randn(tokens, vocabulary, generator=generator)).to(dtype)
    logits = (dense_logits + torch.randn(tokens, vocabulary, generator=generator)).to(dtype)
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator)
    rows = figures(dense_logits, logits, ids)
    p = torch.softmax(dense_logits.double(), -1)
    log_q = torch.log_softmax(logits.double(), -1)
    # Both sides are float64 sums of 97 terms; 1e-9 leaves room for their order alone.
    assert rows["kl"].numerator == pytest.approx(float((p * (p.log() - log_q)).sum()), rel=1e-9)
    nll = -log_q[:-1].gather(-1, ids[1:, None]).sum()
    assert rows["nll"].numerator == pytest.approx(float(nll), rel=1e-9)
    order = logits.double().argsort(dim=-1, descending=True, stable=True)
    choice = dense_logits.argmax(-1)
    ranks = (order == choice[:, None]).nonzero()[:, 1] + 1
    assert rows["mean_rank"].numerator == float(ranks.sum())


def test_identical_logits_have_no_divergence():
    logits = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    rows = figures(logits, logits, torch.arange(7))
    assert rows["kl"].numerator == 0.0
    assert rows["nll"].numerator == rows["nll_dense"].numerator


def test_impossible_tokens_do_not_make_nan():
    dense = torch.tensor([[0.0, 1.0, float("-inf")]] * 2)
    cell = torch.tensor([[1.0, 0.0, float("-inf")]] * 2)
    assert math.isfinite(figures(dense, cell, torch.tensor([0, 1]))["kl"].numerator)


def test_distinct_bigrams():
    assert bigrams(torch.tensor([1, 2, 1, 2, 3])) == {(1, 2), (2, 1), (2, 3)}

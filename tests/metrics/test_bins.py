"""Figures by position and by margin: by eye, against brute force, and added up over windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.base import WindowView
from sparsehpc.metrics.measures.agreement import Agreement
from sparsehpc.metrics.measures.bins import MARGIN_EDGES, POSITION_EDGES, Bins
from sparsehpc.metrics.positions import dense_positions, positions
from sparsehpc.metrics.rows import Rows


def view(dense_logits, logits, ids, every_position=True, index=0):
    dense = dense_positions(dense_logits, ids)
    return WindowView(
        index=index,
        ids=ids,
        text_bytes=1,
        counted=len(ids) if every_position else len(ids) - 1,
        dense=dense,
        positions=positions(logits, ids, dense_logits, dense),
        masked_choice=None,
        dense_logits=dense_logits,
        logits=logits,
    )


def by_bin(rows):
    return {(row.subject, row.metric): (row.numerator, row.denominator) for row in rows}


def test_by_eye():
    """Four positions, margins 2, 0.05, 0.5 and 4; the cell flips the second and the third."""
    dense = torch.tensor([[2.0, 0.0], [0.0, 0.05], [0.5, 0.0], [0.0, 4.0]])
    cell = torch.tensor([[1.0, 0.0], [0.05, 0.0], [0.0, 0.5], [0.0, 4.0]])
    # Tokens that follow: 0 (both right), 1 (only dense), 1 (only the cell); nothing follows the last position.
    found = by_bin(Bins().window(view(dense, cell, torch.tensor([1, 0, 1, 1]))))
    assert found["position [0, 16)", "top1_agreement"] == (2, 4)
    assert found["position [0, 16)", "accuracy"] == (2, 3)
    assert found["margin [1, 3)", "top1_agreement"] == (1, 1)
    assert found["margin [0.01, 0.1)", "top1_agreement"] == (0, 1)
    assert found["margin [0.3, 1)", "top1_agreement"] == (0, 1)
    assert found["margin [3, inf)", "top1_agreement"] == (1, 1)
    assert found["margin [0.01, 0.1)", "dense_only_right"] == (1, 1)
    assert found["margin [0.3, 1)", "variant_only_right"] == (1, 1)
    assert found["margin [0.3, 1)", "dense_only_right"] == (0, 1)
    # The last position predicts no token of the text.
    assert ("margin [3, inf)", "accuracy") not in found
    assert ("margin [0, 0.01)", "kl") not in found


@pytest.mark.parametrize("every_position", [True, False])
def test_against_brute_force(every_position):
    generator = torch.Generator().manual_seed(0)
    length = 150
    dense = 2 * torch.randn(length, 40, generator=generator)
    cell = dense + torch.randn(length, 40, generator=generator)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 40, length))
    one = view(dense, cell, ids, every_position)
    found = by_bin(Bins().window(one))
    top = dense.double().topk(2, dim=-1).values.numpy()
    for name, values, edges in (
        ("position", np.arange(length), POSITION_EDGES),
        ("margin", top[:, 0] - top[:, 1], MARGIN_EDGES),
    ):
        seen = 0
        for low, high in zip(edges, [*edges[1:], np.inf], strict=True):
            inside = [t for t in range(one.counted) if low <= values[t] < high]
            if not inside:
                continue
            subject = f"{name} [{low:g}, {high:g})"
            same = sum(int(dense[t].argmax() == cell[t].argmax()) for t in inside)
            assert found[subject, "top1_agreement"] == (same, len(inside))
            kl = sum(float(one.positions.kl[t]) for t in inside)
            assert found[subject, "kl"] == (pytest.approx(kl, rel=1e-12), len(inside))
            lost = sum(
                int(dense[t].argmax() == ids[t + 1] and cell[t].argmax() != ids[t + 1])
                for t in inside
                if t + 1 < length
            )
            assert found[subject, "dense_only_right"] == (lost, 1)
            seen += len(inside)
        assert seen == one.counted


def test_bins_of_either_kind_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(1)
    rows, whole = Rows(), []
    for index, length in enumerate((30, 70, 5)):
        dense = torch.randn(length, 20, generator=generator)
        cell = dense + torch.randn(length, 20, generator=generator)
        ids = torch.randint(0, 20, (length,), generator=generator)
        one = view(dense, cell, ids, index=index)
        rows.extend(Bins().window(one))
        whole += Agreement().window(one)
    found = rows.all()
    assert len({(row.subject, row.metric) for row in found}) == len(found)
    for metric in ("top1_agreement", "accuracy", "accuracy_dense", "dense_only_right", "variant_only_right"):
        expected = sum(row.numerator for row in whole if row.metric == metric)
        for kind in ("position", "margin"):
            own = [row for row in found if row.metric == metric and row.subject.startswith(kind)]
            assert sum(row.numerator for row in own) == expected, (metric, kind)
    assert sum(row.denominator for row in found if row.metric == "top1_agreement") == 2 * 105


def test_rows_that_do_not_add_up_stay_apart():
    rows = Rows()
    one = Measurement("bin", "a", "worst", 2.0, 1.0, "max")
    window = Measurement("window", "0", "kl", 1.0, 2.0, "ratio")
    for _ in range(2):
        rows.extend([one, window, Measurement("bin", "a", "kl", 1.0, 2.0, "ratio"), Measurement("bin", "a", "n", 3.0)])
    assert rows.all() == [
        one,
        window,
        one,
        window,
        Measurement("bin", "a", "kl", 2.0, 4.0, "ratio"),
        Measurement("bin", "a", "n", 6.0),
    ]

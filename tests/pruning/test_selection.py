"""Exact-count selection: by eye on a few weights, against sorting, and against every way to cut the work."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehpc.core.errors import CellError
from sparsehpc.pruning import cuts as ranking
from sparsehpc.pruning import selection
from sparsehpc.pruning.patterns import removed_count

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def cuts(tensors, counts, tie_rule="index"):
    names = [str(i) for i in range(len(tensors))]
    return ranking.find_cuts(names, lambda name: tensors[int(name)], counts, tie_rule)


def masks(tensors, count, tie_rule="index"):
    cut = cuts(tensors, [count], tie_rule)[0]
    return [cut.mask(tensor, index) for index, tensor in enumerate(tensors)]


def brute_force(tensors, count):
    """Stable sort of all magnitudes in float64: ties stay in module order, then flat index."""
    magnitudes = np.concatenate([tensor.double().abs().numpy().ravel() for tensor in tensors])
    mask = np.zeros(len(magnitudes), dtype=bool)
    mask[np.argsort(magnitudes, kind="stable")[:count]] = True
    return mask


def test_eight_weights_by_eye():
    first = torch.tensor([[0.5, -0.1], [0.3, -0.2]])
    second = torch.tensor([[-0.05, 0.2], [0.2, -0.9]])
    # Ranked: .05, .1, then .2 three times (first tensor's, then second's two), .3, .5, .9.
    assert masks([first, second], 3)[0].tolist() == [[False, True], [False, True]]
    assert masks([first, second], 3)[1].tolist() == [[True, False], [False, False]]
    assert masks([first, second], 4)[1].tolist() == [[True, True], [False, False]]
    assert masks([first, second], 5)[1].tolist() == [[True, True], [True, False]]


def test_threshold_rule_takes_every_tie():
    weight = torch.tensor([[0.2, -0.2, 0.2, 0.1]])
    assert masks([weight], 2)[0].tolist() == [[True, False, False, True]]
    assert masks([weight], 2, "threshold")[0].tolist() == [[True, True, True, True]]
    assert cuts([weight], [2], "threshold")[0].removed == 4
    assert not masks([weight], 0, "threshold")[0].any()


def test_zero_of_either_sign_counts_first_and_is_one_magnitude():
    weight = torch.tensor([[-0.0, 1.0, 0.0, -1e-45, 2.0]])
    assert masks([weight], 2)[0].tolist() == [[True, False, True, False, False]]
    assert masks([weight], 3)[0].tolist() == [[True, False, True, True, False]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    levels=st.sampled_from([1, 2, 5, 1000]),
    dtype=st.sampled_from(DTYPES),
    share=st.floats(0, 1),
)
def test_equals_a_stable_sort_of_everything(seed, sizes, levels, dtype, share):
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        (torch.randint(-levels, levels + 1, (size, 3), generator=generator) / levels * 0.037).to(dtype)
        for size in sizes
    ]
    count = int(share * sum(tensor.numel() for tensor in tensors))
    found = torch.cat([mask.view(-1) for mask in masks(tensors, count)]).numpy()
    assert (found == brute_force(tensors, count)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_counts_in_the_same_passes_equal_one_at_a_time(dtype):
    torch.manual_seed(0)
    tensors = [(torch.randn(300, 70) * 0.02).to(dtype), (torch.randn(130, 11) * 0.3).to(dtype)]
    total = sum(tensor.numel() for tensor in tensors)
    counts = [0, 1, 7, total // 3, total // 2, total - 1, total]
    together = cuts(tensors, counts)
    for count, cut in zip(counts, together, strict=True):
        assert cut == cuts(tensors, [count])[0]
        found = torch.cat([cut.mask(tensor, index).view(-1) for index, tensor in enumerate(tensors)])
        assert int(found.sum()) == count == cut.removed
        assert (found.numpy() == brute_force(tensors, count)).all()


def test_reads_each_tensor_twice_and_in_order():
    tensors = [torch.randn(4, 4) for _ in range(3)]
    read: list[str] = []

    def reader(name):
        read.append(name)
        return tensors[int(name)]

    ranking.find_cuts(["0", "1", "2"], reader, [3, 5, 20])
    assert read == ["0", "1", "2"] * 2


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_chunk_and_thread_count(monkeypatch, chunk, threads):
    torch.manual_seed(1)
    tensors = [torch.randint(-40, 41, (17, 23)).float() / 64, torch.randint(-40, 41, (9, 31)).float() / 64]
    expected = brute_force(tensors, 300)
    monkeypatch.setattr(ranking, "CHUNK", chunk)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = torch.cat([mask.view(-1) for mask in masks(tensors, 300)]).numpy()
    finally:
        torch.set_num_threads(before)
    assert (found == expected).all()


def test_a_non_contiguous_weight_ranks_by_its_logical_index():
    weight = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).T  # rows (1, 1), (2, 1)
    assert masks([weight], 2)[0].tolist() == [[True, True], [False, False]]


def test_nan_is_an_error_that_names_the_tensor_and_infinity_ranks_last():
    good, bad = torch.ones(2, 2), torch.tensor([[1.0, float("nan")]])
    with pytest.raises(CellError, match=r"layer\.bad holds 1 NaN of 2"):
        ranking.find_cuts(["good", "layer.bad"], {"good": good, "layer.bad": bad}.__getitem__, [1])
    infinite = torch.tensor([[float("-inf"), 3.0, 3.4e38]])
    assert masks([infinite], 2)[0].tolist() == [[False, True, True]]


def test_float64_is_refused_because_its_key_would_lose_bits():
    with pytest.raises(TypeError, match="float64"):
        ranking.magnitude_keys(torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("count", [-1, 5])
def test_a_count_beyond_the_weights_is_an_error(count):
    with pytest.raises(ValueError, match="cannot remove"):
        cuts([torch.ones(2, 2)], [count])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    levels=st.sampled_from([1, 3, 1000]),
    share=st.floats(0, 1),
)
def test_rows_equal_a_stable_sort_of_each_row(seed, rows, columns, levels, share):
    generator = np.random.default_rng(seed)
    scores = torch.from_numpy(generator.integers(-1, levels, (rows, columns)).astype(np.float32))
    count = int(share * columns)
    expected = torch.zeros(rows, columns, dtype=torch.bool)
    expected.scatter_(1, scores.sort(dim=1, stable=True).indices[:, :count], True)
    assert torch.equal(selection.lowest_per_row(scores, count), expected)
    flat = torch.zeros(rows * columns, dtype=torch.bool)
    flat[scores.view(-1).sort(stable=True).indices[: count * rows]] = True
    assert torch.equal(selection.lowest(scores, count * rows).view(-1), flat)


def test_keep_two_of_four_by_eye():
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0, 7.0, 7.0, 7.0, 7.0]])
    assert selection.lowest_in_groups(scores, 2, 4).tolist() == [[True, False, False, True, True, True, False, False]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(2, 4), (4, 8), (1, 4), (3, 4), (16, 32)]))
def test_groups_equal_a_stable_sort_of_each_group(seed, shape):
    keep, of = shape
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (5, 3 * of)).astype(np.float32))
    expected = torch.zeros(15, of, dtype=torch.bool)
    expected.scatter_(1, scores.view(15, of).sort(dim=1, stable=True).indices[:, : of - keep], True)
    assert torch.equal(selection.lowest_in_groups(scores, keep, of), expected.view(5, 3 * of))


def test_blocks_sum_and_expand():
    weight = torch.arange(16, dtype=torch.float32).view(4, 4)
    assert selection.sum_blocks(weight, 2, 2).tolist() == [[10.0, 18.0], [42.0, 50.0]]
    mask = selection.expand_blocks(torch.tensor([[True, False], [False, False]]), 2, 2)
    assert mask.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_removing_keeps_other_bits_and_leaves_the_weight_alone():
    weight = torch.tensor([[-0.0, 3.0]], dtype=torch.bfloat16)
    pruned = selection.remove(weight, torch.tensor([[False, True]]))
    assert torch.equal(pruned.view(torch.int16), torch.tensor([[-0.0, 0.0]], dtype=torch.bfloat16).view(torch.int16))
    assert weight[0, 1] == 3.0


@pytest.mark.parametrize(("sparsity", "total", "expected"), [("0.3", 84_934_656, 25_480_396), ("0.29", 100, 29)])
def test_counts_are_decimal(sparsity, total, expected):
    assert removed_count(Decimal(sparsity), total) == expected
    assert int(0.29 * 100) == 28  # what binary arithmetic would make of it

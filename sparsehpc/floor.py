"""How far the dense model differs from itself when it is computed in another order: the floor of every comparison.

Floating-point sums depend on the order of their terms, and that order on how many windows share a batch and on how many
threads share a product. So two runs of one model are not equal to the last bit, and now and then not to the token.
The dense model reads some of the evaluation windows a second time, two in a batch and with another number of threads:
what differs then is rounding, and no smaller difference between two models can be told from it.

The rows belong to the dense cell and are the same for equal numbers of threads, whatever else its job computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from sparsehpc.core.errors import CellError
from sparsehpc.core.schema import Measurement
from sparsehpc.metrics.positions import dense_positions, positions

if TYPE_CHECKING:
    from sparsehpc.models.hidden import HiddenStates
    from sparsehpc.models.stream import LayerWalk
    from sparsehpc.text.windows import TokenWindows

#: Windows that are read twice at most, and their tokens; two windows are read however long they are.
MOST_WINDOWS, MOST_TOKENS = 8, 4096

Progress = Callable[[str, int, int], None]
Pair = tuple[int, int]


def measure_floor(
    walk: LayerWalk, dense: HiddenStates, evaluation: TokenWindows, progress: Progress
) -> list[Measurement]:
    """Compare the dense model with itself under another batch split and thread count.

    Parameters
    ----------
    walk
        The walk, with what lies outside the layers loaded; layers are read once more and dropped again.
    dense
        Last hidden states of the dense model by window, alone or in batches (`sparsehpc.tracks.batches_of`).
    evaluation
        The windows.
    progress
        Called with a stage, steps done and steps in all.

    Returns
    -------
    list
        Rows of the whole model: ``floor_top1_agreement``, ``floor_kl`` and ``floor_nll`` (mean absolute difference of a
        window's negative log-likelihood per token) over all windows, and ``floor_top1_differs_max``, ``floor_kl_max``
        and ``floor_nll_max`` of the worst window; KL and likelihood in nats.
    """
    pairs = pairs_of([len(ids) for ids in evaluation.ids])
    with _threads(other_threads(torch.get_num_threads())):
        again = _read_in_pairs(walk, pairs, evaluation, progress)
    return _rows([_Compared.of(walk, dense, evaluation, window, hidden) for window, hidden in again])


def pairs_of(lengths: Sequence[int]) -> list[Pair]:
    """Windows to read two by two: spread over the text, neighbours in length together, so that little is cut off.

    A window that is left over shares the batch with itself.

    >>> pairs_of([5, 17, 30, 17])
    [(0, 1), (3, 2)]
    >>> pairs_of([9])
    [(0, 0)]
    """
    count = min(len(lengths), MOST_WINDOWS, max(2, MOST_TOKENS // max(lengths)))
    chosen = sorted({index * len(lengths) // count for index in range(count)}, key=lambda window: lengths[window])
    if len(chosen) % 2:
        chosen.append(chosen[-1])
    return list(zip(chosen[::2], chosen[1::2], strict=True))


def other_threads(threads: int) -> int:
    """Another number of threads: half as many, or two instead of one.

    >>> [other_threads(n) for n in (1, 2, 3, 16)]
    [2, 1, 1, 8]
    """
    return threads // 2 if threads > 1 else 2


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_in_pairs(
    walk: LayerWalk, pairs: Sequence[Pair], evaluation: TokenWindows, progress: Progress
) -> list[tuple[int, torch.Tensor]]:
    """Last hidden states of the paired windows, each cut to the shorter of its pair, by window."""
    batches = []
    for pair in pairs:
        tokens = min(len(evaluation.ids[window]) for window in pair)
        batches.append(torch.stack([torch.from_numpy(evaluation.ids[window][:tokens]) for window in pair]))
    states = [walk.embed(ids)[0] for ids in batches]
    for layer in range(walk.structure.layers):
        progress("floor", layer, walk.structure.layers)
        walk.load(layer)
        states = [
            walk.run(layer, hidden, walk.call(ids.shape[1], len(ids)))
            for hidden, ids in zip(states, batches, strict=True)
        ]
        walk.unload(layer)
    progress("floor", walk.structure.layers, walk.structure.layers)
    found = {
        window: hidden[place : place + 1]
        for pair, hidden in zip(pairs, states, strict=True)
        for place, window in enumerate(pair)
    }
    return sorted(found.items())


class _Compared:
    """One window of the dense model beside its second reading, over the positions that both have."""

    def __init__(self, counted: int, differs: int, kl: float, predicted: int, nll: float) -> None:
        self.counted, self.differs, self.kl, self.predicted, self.nll = counted, differs, kl, predicted, nll

    @classmethod
    def of(
        cls, walk: LayerWalk, dense: HiddenStates, evaluation: TokenWindows, window: int, hidden: torch.Tensor
    ) -> _Compared:
        """Compare the logits of one window, one at a time: those of a large vocabulary fill memory."""
        tokens = hidden.shape[1]
        ids = torch.from_numpy(evaluation.ids[window][:tokens]).to(walk.device)
        # What is causal does not see what was cut off behind it.
        first = walk.head(dense[window][:, :tokens])[0]
        second = walk.head(hidden)[0]
        if not bool(torch.isfinite(second).all()):
            raise CellError(f"dense model, second reading: logits of window {window} hold NaN or Inf")
        once = dense_positions(first, ids)
        again = positions(second, ids, first, once)
        whole = tokens == len(evaluation.ids[window])
        counted = tokens - 1 if whole and not evaluation.every_position else tokens
        differs = int((once.choice != again.choice)[:counted].sum())
        divergence = max(0.0, float(again.kl[:counted].sum()))
        likelihood = abs(float(again.nll.sum()) - float(once.nll.sum()))
        return cls(counted, differs, divergence, tokens - 1, likelihood)


def _rows(found: Sequence[_Compared]) -> list[Measurement]:
    counted = sum(one.counted for one in found)
    predicted = sum(one.predicted for one in found)

    def row(metric: str, top: float, bottom: float, unit: str = "1", reduction: str = "ratio") -> Measurement:
        return Measurement("model", "model", metric, top, bottom, reduction, unit)

    def worst(metric: str, values: Iterator[float], unit: str = "1") -> Measurement:
        return row(metric, max(values), 1.0, unit, "max")

    rows = [
        row("floor_top1_agreement", counted - sum(one.differs for one in found), counted),
        worst("floor_top1_differs_max", (one.differs / one.counted for one in found)),
        row("floor_kl", sum(one.kl for one in found), counted, "nats"),
        worst("floor_kl_max", (one.kl / one.counted for one in found), "nats"),
        row("floor_positions", counted, 1.0, "tokens", "sum"),
    ]
    if predicted:
        rows.append(row("floor_nll", sum(one.nll for one in found), predicted, "nats"))
        rows.append(worst("floor_nll_max", (one.nll / max(1, one.predicted) for one in found), "nats"))
    return rows

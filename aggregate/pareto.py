"""What no other choice beats: smaller (or faster) and better at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def front(cost: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each point is on the front of two figures that are both better when smaller.

    A point is off the front where another is at most as costly and at most as bad, and better in one of them.
    Equal points are both on it; points with a missing figure are off it.

    >>> front(np.array([1.0, 2.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0, 1.0])).tolist()
    [True, True, False, False]
    """
    known = ~(np.isnan(cost) | np.isnan(loss))
    on = np.zeros(len(cost), bool)
    best = np.inf
    order = np.lexsort((loss, cost))
    order = order[known[order]]
    index = 0
    while index < len(order):
        # All points of one cost at once: only the least loss among them can be on the front.
        same = order[index:][cost[order[index:]] == cost[order[index]]]
        least = loss[same].min()
        if least < best:
            on[same[loss[same] == least]] = True
            best = least
        index += len(same)
    return on

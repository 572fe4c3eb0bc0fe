"""How far a model can be pruned: where a tolerance is crossed, and where its curve breaks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Floats = NDArray[np.float64]

#: Default tolerances: 5 % more perplexity; 90 % of the dense model's choices.
PERPLEXITY_TOLERANCE = 0.05
AGREEMENT_TOLERANCE = 0.9

#: Points, dense included, that two lines and their break need to be told from one line.
FEWEST_POINTS = 6

#: Places at which a break is looked for, between the first and the last interior sparsity.
_PLACES = 121
#: Residuals below this part of the largest value are rounding.
_ROUNDING = 1e-12

REACHED, BELOW_FIRST, NOT_REACHED, NO_DATA = "reached", "below the first grid step", "not reached", "no data"


class Crossing(NamedTuple):
    """Where a curve leaves its tolerance.

    Parameters
    ----------
    answer
        ``reached``, ``below the first grid step``, ``not reached`` or ``no data``.
    within
        Largest measured sparsity that is within the tolerance (0 is dense); NaN without data.
    beyond
        Smallest measured sparsity above it that is not; NaN where there is none.
    estimate
        Where the monotone fit crosses the tolerance, interpolated between the two; NaN where it does not.
    """

    answer: str
    within: float
    beyond: float
    estimate: float


class Break(NamedTuple):
    """Where one line becomes two.

    Parameters
    ----------
    answer
        ``two pieces``, ``one piece`` or why there is none.
    place
        Sparsity of the break; NaN where there is none.
    lo, hi
        Percentile interval over all draws of windows: those that prefer one line have a best break too, and leaving
        them out would make the interval narrower than what is known.
    share_two
        Share of draws whose Bayesian information criterion prefers two pieces.
    """

    answer: str
    place: float
    lo: float
    hi: float
    share_two: float


def crossing(sparsity: Floats, loss: Floats, tolerance: float) -> Crossing:
    """Largest sparsity whose loss stays within a tolerance.

    Parameters
    ----------
    sparsity
        Measured sparsities above 0, ascending.
    loss
        Loss at each, larger is worse, 0 for the dense model: the bound on the bad side of its interval.
    tolerance
        Largest loss that is accepted.
    """
    known = np.isfinite(loss) | (loss == np.inf)
    s, y = sparsity[known], np.minimum(loss[known], 1e6)
    if not len(s):
        return Crossing(NO_DATA, math.nan, math.nan, math.nan)
    s, y = np.concatenate([[0.0], s]), np.concatenate([[0.0], y])
    # Noise may let a larger sparsity look better; losses only grow. Dense is exact and holds the fit at 0.
    weights = np.ones_like(y)
    weights[0] = 1e9
    fit = isotonic_regression(y, weights=weights).x
    fit = np.maximum(fit - fit[0], 0.0)
    within = int(np.flatnonzero(fit <= tolerance)[-1])
    if within == len(s) - 1:
        return Crossing(NOT_REACHED, float(s[-1]), math.nan, math.nan)
    low, high = fit[within], fit[within + 1]
    estimate = s[within] + (tolerance - low) / (high - low) * (s[within + 1] - s[within])
    answer = BELOW_FIRST if within == 0 else REACHED
    return Crossing(answer, float(s[within]), float(s[within + 1]), float(estimate))


def break_point(sparsity: Floats, value: Floats, drawn: Floats) -> Break:
    """Break of a continuous two-piece line, least squares, against one line by BIC.

    Parameters
    ----------
    sparsity
        Sparsities, dense at 0 included, ascending.
    value
        Log-perplexity relative to dense at each.
    drawn
        The same in every draw of windows: draws x sparsities.
    """
    points = len(sparsity)
    if points < FEWEST_POINTS:
        return Break(f"too few sparsities ({points}, {FEWEST_POINTS} are needed)", *(math.nan,) * 4)
    # One interior point must lie on each side, or a piece would hang on a single value.
    places = np.linspace(sparsity[1], sparsity[-2], _PLACES)
    one = _residuals(np.stack([np.ones(points), sparsity], axis=1), np.vstack([value, drawn]))
    two = np.stack(
        [
            _residuals(
                np.stack([np.ones(points), sparsity, np.maximum(sparsity - place, 0)], axis=1),
                np.vstack([value, drawn]),
            )
            for place in places
        ]
    )
    best = two.argmin(axis=0)
    # What rounding leaves of an exact fit is no reason to prefer either.
    tiny = np.maximum(points * (_ROUNDING * np.abs(np.vstack([value, drawn])).max(axis=1)) ** 2, 1e-300)
    bic_one = points * np.log(np.maximum(one, tiny) / points) + 2 * math.log(points)
    bic_two = points * np.log(np.maximum(two.min(axis=0), tiny) / points) + 4 * math.log(points)
    prefers = bic_two < bic_one
    share = float(prefers[1:].mean()) if len(drawn) else math.nan
    if not prefers[0]:
        return Break("one piece", math.nan, math.nan, math.nan, share)
    lo, hi = np.quantile(places[best[1:]], [0.025, 0.975]) if len(drawn) else (math.nan, math.nan)
    return Break("two pieces", float(places[best[0]]), float(lo), float(hi), share)


def _residuals(design: Floats, values: Floats) -> Floats:
    """Sum of squared residuals of each row of values."""
    basis, _ = np.linalg.qr(design)
    # einsum, not BLAS: the number of threads must change no bit.
    fitted = np.einsum("pk,rk->rp", basis, np.einsum("pk,rp->rk", basis, values))
    return np.asarray(((values - fitted) ** 2).sum(axis=1))

"""Between which two measured sparsities every curve of a run leaves its tolerance: where measuring more helps most."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aggregate import tipping
from aggregate.findings import curves, loss_of
from aggregate.tables import read_table
from sparsehpc.core.layout import RunFolder

#: Figures with a tolerance, and the usual one: a rise of perplexity, a share of equal choices.
TOLERANCES = {"perplexity": tipping.PERPLEXITY_TOLERANCE, "top1_agreement": tipping.AGREEMENT_TOLERANCE}


class Bracket(NamedTuple):
    """Where one curve (one way of pruning, variant and calibration seed) leaves its tolerance.

    Parameters
    ----------
    cell_ids
        Its measured cells by ascending sparsity.
    answer
        As in `aggregate.tipping.Crossing`.
    last_within
        Number of cells, from the first, that are within; 0: only dense is.
    estimate
        Where the monotone fit crosses the tolerance; NaN where it does not.
    """

    cell_ids: tuple[str, ...]
    answer: str
    last_within: int
    estimate: float


def brackets(run: RunFolder, metric: str, tolerance: float) -> list[Bracket]:
    """One bracket per curve, in the order of the plan, from the ``global`` table."""
    frame = read_table(run, "global").to_pandas()
    frame = frame[frame["convention"] != "study"].drop_duplicates("cell_id").reset_index(drop=True)
    found = []
    for _, rows in curves(frame):
        sparsity = rows["sparsity_target"].to_numpy(float)
        loss, limit = loss_of(rows, metric, tolerance)
        crossing = tipping.crossing(sparsity, loss, limit)
        within = 0 if np.isnan(crossing.within) else int((sparsity <= crossing.within).sum())
        found.append(Bracket(tuple(rows["cell_id"]), crossing.answer, within, crossing.estimate))
    return found

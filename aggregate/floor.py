"""What cannot be measured: differences smaller than those of the dense model computed twice in another order.

The dense cell of a model holds the floor (`sparsehpc.floor`); it holds for every cell of the same model, dtype, device
and text, so the ``global`` table shows it in each of their rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

NO_MEASURABLE_DIFFERENCE = "no measurable difference"

#: Sign beside a figure that cannot be told from the dense model's, and what it means.
DAGGER = "\N{DAGGER}"
DAGGER_NOTE = (
    f"{DAGGER}: {NO_MEASURABLE_DIFFERENCE} from dense: not more than between the dense model and itself in another "
    f"batch split and with another number of threads, or than rounding allows (1e-5 nats)."
)

#: Nats per token below which two figures are the same whatever the floor. Logits between 16 and 32 lie 1.9e-6 apart in
#: float32, and sums over hundreds of products in another order (a sparse kernel against a dense one, with the same
#: weights) move a logit by a few such steps; a divergence or a likelihood can be no surer than its logits.
NO_DIFFERENCE_NATS = 1e-5

#: Figures that are means of nats per token; perplexity is compared by its logarithm.
NATS = ("kl", "nll", "perplexity")

#: Shares are differences of decimals: equal ones may differ in the last bit.
_SLACK = 1 + 1e-9

_PREFIX = "floor_"

#: Cells that share a dense model, dtype, device and text share its floor.
_SHARED = (
    "model",
    "revision",
    "dtype",
    "device",
    "evaluation_corpus",
    "evaluation_windows",
    "evaluation_window_tokens",
)


def spread(wide: pa.Table, keys: pa.Table) -> pa.Table:
    """Copy the floor of every dense cell to the cells that are compared with it.

    Parameters
    ----------
    wide
        Rows of the whole model as `aggregate.pivot` makes them.
    keys
        Keys of the planned cells, in plan order.
    """
    names = [name for name in wide.column_names if name.startswith(_PREFIX)]
    if not names:
        return wide
    subjects: dict[tuple[Any, ...], int] = {}
    of_cell = np.array(
        [
            subjects.setdefault(values, len(subjects))
            for values in zip(*(keys[name].to_pylist() for name in _SHARED), strict=True)
        ],
        np.int64,
    )
    subject = of_cell[wide["position"].to_numpy()]
    for name in names:
        values = wide[name].to_numpy().astype(float)
        known = ~np.isnan(values)
        floors = np.full(len(subjects), np.nan)
        floors[subject[known]] = values[known]
        place = wide.column_names.index(name)
        found = floors[subject]
        wide = wide.set_column(place, name, pa.array(found, pa.float64(), mask=np.isnan(found)))
    return wide


def floor_of(metric: str, row: Mapping[str, Any]) -> float:
    """Smallest difference of a figure that can be measured; 0.0 where no floor is known.

    Parameters
    ----------
    metric
        Name of the figure. For ``perplexity`` the floor is one of its logarithm.
    row
        A row of the ``global`` table.

    Returns
    -------
    float
        Share of positions for agreement: what differed, and at least one of the positions that were compared, since
        none of n says little about fewer than 1 in n. Nats of the worst window for divergence and likelihood.
    """
    if metric == "top1_agreement":
        agreement, positions = _value(row, "floor_top1_agreement"), _value(row, "floor_positions")
        return 0.0 if math.isnan(agreement) or not positions else max(1 - agreement, 1 / positions)
    name = {"kl": "floor_kl_max", "nll": "floor_nll_max", "perplexity": "floor_nll_max"}.get(metric, "")
    found = _value(row, name)
    return 0.0 if math.isnan(found) else found


def is_dense_but_for_rounding(metric: str, row: Mapping[str, Any]) -> bool:
    """Whether the figure of a cell that is not the dense model itself cannot be told from the dense model's."""
    itself = row.get("method") == "none" and row.get("variant", "dense") == "dense"
    if itself or math.isnan(_value(row, "floor_kl_max")):
        return False
    change = {
        "top1_agreement": lambda: 1 - _value(row, "top1_agreement"),
        "kl": lambda: _value(row, "kl"),
        "perplexity": lambda: abs(_value(row, "log_perplexity_difference")),
        "nll": lambda: abs(_value(row, "log_perplexity_difference")),
    }.get(metric)
    least = max(floor_of(metric, row), NO_DIFFERENCE_NATS if metric in NATS else 0.0)
    return change is not None and change() <= _SLACK * least


def mark(row: Mapping[str, Any]) -> str:
    """Words for a cell whose behaviour cannot be told from the dense model's in any figure, else nothing."""
    same = all(is_dense_but_for_rounding(metric, row) for metric in ("top1_agreement", "kl", "perplexity"))
    return f"{NO_MEASURABLE_DIFFERENCE} from dense" if same else ""


def _value(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    # pandas' own missing value is neither None nor a number
    return float(value) if isinstance(value, (int, float, np.number)) else math.nan

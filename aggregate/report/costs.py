"""What a run cost, summed by machine, model and variant."""

from __future__ import annotations

import pandas as pd

from aggregate.private import scrub
from aggregate.report.bins import UNTRAINED

COST_HEADINGS = (
    "model",
    "variant",
    "processor or accelerator",
    "cells",
    "pruning (s, mean)",
    "storing (s, mean)",
    "evaluating (s, mean)",
    "peak memory (GiB)",
)

#: Lines of the table.
_MOST = 100


def cost_rows(costs: pd.DataFrame) -> list[list[str]]:
    """Rows of the table of costs, in plan order."""
    rows = []
    for (model, variant, device), part in costs.groupby(["model", "variant", "device_name"], sort=False):
        means = (f"{part[name].mean():,.2f}" for name in ("prune_s", "encode_s", "evaluate_s"))
        peak = part["peak_rss_bytes"].max() / 2**30
        name = scrub(str(model)) + ("" if part["trained"].all() else UNTRAINED)
        rows.append([name, str(variant), scrub(str(device)), str(len(part)), *means, f"{peak:,.2f}"])
    return rows[:_MOST]

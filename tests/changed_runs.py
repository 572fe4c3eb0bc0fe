"""Copies of a finished run whose measurements are others: what a comparison of runs is tried on."""

from __future__ import annotations

import shutil

from aggregate.api import aggregate_run
from aggregate.scan import read_plan
from sparsehpc.core import shards
from sparsehpc.core.layout import RunFolder


def changed_copy(run: RunFolder, target, synthetic, edit, row_edit=None) -> RunFolder:
    """The same run with every cell's measurements passed through ``edit``."""
    shutil.copytree(run.root, target)
    copy = RunFolder(target)
    for cell_id in read_plan(run)["cell_id"].to_pylist():
        row = shards.read_row(run.cell(cell_id), cell_id)
        table = shards.read_measurements(run.cell(cell_id), row)
        rows = [shards.Measurement(**{k: v for k, v in line.items() if k != "cell_id"}) for line in table.to_pylist()]
        shards.write_shard(copy.cell(cell_id), {**row, **(row_edit or {})}, edit(row, rows))
    aggregate_run(copy, figures=False)
    return copy


def worse_likelihood(row, rows):
    """Every window of pruned cells half a nat per token worse, with some spread."""
    if row["method"] == "none":
        return rows
    return [
        r._replace(numerator=r.numerator + r.denominator * (0.5 + 0.01 * int(r.subject)))
        if r.metric in ("nll", "perplexity")
        else r
        for r in rows
    ]

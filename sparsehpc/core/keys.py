"""The key columns of a cell: one place that turns a specification into a row."""

from __future__ import annotations

import json
from typing import Any

from sparsehpc.core.spec import Cell


def key_row(cell: Cell) -> dict[str, Any]:
    """Values of `schema.KEYS` for one cell."""
    pruning, calibration = cell.pruning, cell.pruning.calibration
    return {
        "cell_id": cell.cell_id,
        "model": cell.model,
        "revision": cell.revision,
        "dtype": cell.dtype,
        "device": cell.device,
        "resource": cell.resource,
        "method": pruning.method,
        "options": json.dumps(dict(pruning.options), sort_keys=True),
        "pattern": pruning.pattern,
        "sparsity_target": float(pruning.fraction),
        "allocation": pruning.allocation,
        "targets": "+".join(pruning.targets),
        "refit": pruning.refit,
        # Null, not false: rows of the releases before this axis hold no value either.
        "true_sequential": pruning.true_sequential or None,
        "variant": cell.variant,
        "calibration_corpus": calibration.corpus if calibration else None,
        "calibration_windows": calibration.windows if calibration else None,
        "calibration_window_tokens": calibration.window_tokens if calibration else None,
        "calibration_seed": calibration.seed if calibration else None,
        "evaluation_corpus": cell.evaluation.corpus,
        "evaluation_windows": cell.evaluation.windows,
        "evaluation_window_tokens": cell.evaluation.window_tokens,
        "seed": pruning.seed,
    }

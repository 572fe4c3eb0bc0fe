"""What a cell came to: its row and its figures, from the track that ran it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sparsehpc.core.keys import key_row
from sparsehpc.core.machine import cpu_model, peak_rss_bytes
from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import Calibration, Cell
from sparsehpc.formats.base import FORMATS
from sparsehpc.metrics.base import METRICS, ModelView

if TYPE_CHECKING:
    from sparsehpc.combinations import Combination
    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.text.windows import TokenWindows
    from sparsehpc.tracks import Clock, Track

WORSE_THAN_GUESSING = "worse than guessing"


@dataclasses.dataclass(frozen=True, slots=True)
class CellResult:
    """What one cell came to.

    Parameters
    ----------
    row
        Columns of `schema.CELL` that the pipeline knows.
    measurements
        Its figures.
    calibrate_s
        Part of the row's ``prune_s``: running calibration windows, through the unpruned layers for statistics and
        through the pruned ones to go on.
    """

    row: dict[str, Any]
    measurements: list[Measurement]
    calibrate_s: float = 0.0


class Results:
    """Makes the results of one walk.

    Parameters
    ----------
    snapshot, evaluation, calibrations
        What the walk reads.
    clock
        Its time by phase.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        evaluation: TokenWindows,
        calibrations: Mapping[Calibration, TokenWindows],
        clock: Clock,
    ) -> None:
        self.snapshot = snapshot
        self.evaluation = evaluation
        self.calibrations = calibrations
        self.clock = clock
        self.started = time.perf_counter()
        self.started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def result(
        self,
        cell: Cell,
        track: Track,
        combination: Combination | None,
        dense_s: float,
        rows: Sequence[Measurement],
        dense_tokens: torch.Tensor | None,
        tokens: torch.Tensor | None,
    ) -> CellResult:
        """Row and figures of one cell.

        Parameters
        ----------
        cell, track, combination
            The cell, the track that ran it, and the combination it belongs to (None for the dense model).
        dense_s
            Seconds of the dense stream.
        rows
            Its window rows.
        dense_tokens, tokens
            Greedy continuations.
        """
        source = self.snapshot.source_bytes if self.snapshot.trained else 0
        view = ModelView(
            cell=cell,
            structure=self.snapshot.structure,
            published_dtype=self.snapshot.published_dtype,
            source_bytes=source,
            tensors=track.tensors,
            dense_tokens=dense_tokens,
            tokens=tokens,
        )
        measurements = list(rows)
        for _, kind in METRICS:
            measurements.extend(kind().model(view))
        calibration = cell.pruning.calibration
        row = key_row(cell) | {
            "trained": self.snapshot.trained,
            "published_dtype": self.snapshot.published_dtype,
            "source_bytes": source,
            "snapshot_digest": self.snapshot.digest,
            "evaluation_digest": self.evaluation.digest,
            "calibration_digest": None if calibration is None else self.calibrations[calibration].digest,
            "lossless": FORMATS.get(cell.variant).lossless or track.exact,
            "kernel": ", ".join(sorted(track.kernels)) or "torch.linear",
            "vocabulary_tokens": self.snapshot.structure.vocab_size,
            "mark": self._mark(rows),
            "notes": json.dumps(_notes(track, combination), sort_keys=True),
            "load_s": self.clock["load"],
            "dense_s": dense_s,
            "prune_s": combination.clock["prune"] if combination else 0.0,
            "encode_s": track.clock["encode"],
            "evaluate_s": track.clock["evaluate"],
            "wall_s": time.perf_counter() - self.started,
            "peak_rss_bytes": peak_rss_bytes(),
            "threads": torch.get_num_threads(),
            "cpu_model": cpu_model(),
            "device_name": torch.cuda.get_device_name() if cell.device == "cuda" else cpu_model(),
            "started_at": self.started_at,
        }
        return CellResult(row, measurements, combination.clock["calibrate"] if combination else 0.0)

    def _mark(self, rows: Sequence[Measurement]) -> str:
        """Verdict on perplexity: above the vocabulary size, a uniform guess does better."""
        nll = [row for row in rows if row.metric == "nll"]
        tokens = sum(row.denominator for row in nll)
        if tokens and sum(row.numerator for row in nll) / tokens > math.log(self.snapshot.structure.vocab_size):
            return WORSE_THAN_GUESSING
        return ""


def _notes(track: Track, combination: Combination | None) -> dict[str, Any]:
    """What method and storage recorded, by weight name."""
    notes: dict[str, Any] = {}
    if combination is not None and combination.notes:
        notes["method"] = combination.notes
    if track.notes:
        notes["storage"] = track.notes
    return notes

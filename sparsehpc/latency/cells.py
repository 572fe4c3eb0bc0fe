"""Time cells of one model: each is assembled as a whole, checked, and decodes in turns with the dense model.

Its logits are compared with those of the same weights as zeros in place first. Both sides then decode the same number
of tokens in every round within one process, so that a machine that slows down slows both.
"""

from __future__ import annotations

import datetime
import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsehpc.compress import Compression
from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.keys import key_row
from sparsehpc.core.machine import cpu_model, peak_rss_bytes
from sparsehpc.core.spec import DENSE, Calibration, Cell, Latency, Pruning
from sparsehpc.formats import kernels
from sparsehpc.formats.base import FORMATS
from sparsehpc.latency.figures import figures
from sparsehpc.latency.timed_model import TimedModel, Times
from sparsehpc.models.assemble import Section, assemble
from sparsehpc.models.decode import LOGITS_TOLERANCE
from sparsehpc.models.stream import LayerWalk
from sparsehpc.results import CellResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsehpc.formats.base import BlockGrid, Format
    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.text.windows import TokenWindows

Progress = Callable[[str, int, int], None]
Finished = Callable[[Cell, "CellResult | Exception"], None]

#: Streamed reads of the weights in every round.
_READS = 3


def time_cells(
    cells: Sequence[Cell],
    snapshot: Snapshot,
    calibrations: Mapping[Calibration, TokenWindows],
    prompts: NDArray[np.int64],
    cores: Sequence[int],
    *,
    progress: Progress,
    finished: Finished,
) -> None:
    """Time cells of one model, one after another; an error in one fails that cell alone.

    Parameters
    ----------
    cells
        Cells that agree in everything but pruning and variant.
    snapshot
        Their model.
    calibrations
        Text of methods that learn.
    prompts
        Token ids, prompts x tokens; repeated or cut to the length of a prompt.
    cores
        Logical processors that this process keeps to.
    progress
        Called with a stage, steps done and steps in all.
    finished
        Called with every cell and its result as soon as there is one.
    """
    first = cells[0]
    latency = first.latency
    if latency is None:
        raise SparseHPCError(f"{first.label()} is not a cell that is timed")
    prompt = np.resize(prompts.ravel(), latency.prompt_tokens).tolist()
    done = 0
    for pruning in dict.fromkeys(cell.pruning for cell in cells):
        same = [cell for cell in cells if cell.pruning == pruning]
        try:
            pruned = _Pruned(snapshot, pruning, calibrations, latency, prompt, first.dtype)
        except Exception as error:  # noqa: BLE001 - recorded for every cell it hit
            for cell in same:
                finished(cell, error)
            done += len(same)
            continue
        for cell in same:
            progress("timing", done, len(cells))
            try:
                result = _time(cell, latency, pruned, cores)
            except Exception as error:  # noqa: BLE001 - of this variant alone
                finished(cell, error)
            else:
                finished(cell, result)
            done += 1
            gc.collect()
        del pruned
    progress("timing", len(cells), len(cells))


class _Pruned:
    """Weights of one way of pruning as zeros in place, and their logits."""

    def __init__(
        self,
        snapshot: Snapshot,
        pruning: Pruning,
        calibrations: Mapping[Calibration, TokenWindows],
        latency: Latency,
        prompt: Sequence[int],
        dtype: str,
    ) -> None:
        started = time.perf_counter()
        self.snapshot, self.pruning, self.dtype = snapshot, pruning, dtype
        text = None if pruning.calibration is None else calibrations[pruning.calibration]
        self.text_digest = None if text is None else text.digest
        self.sections = list(_origin(snapshot, dtype, pruning, text))
        self.prune_s = time.perf_counter() - started
        weights = [stored.decode() for section in self.sections for stored in section.stored.values()]
        self.zeros = sum(weight.numel() - int(torch.count_nonzero(weight)) for weight in weights)
        self.prompt = prompt
        model = assemble(snapshot.path, snapshot.structure, dtype, iter(self.sections), fuse=False)
        with torch.inference_mode():
            self.logits: torch.Tensor = model(torch.tensor([list(prompt)])).logits[0, -1].float()

    def stored_as(self, variant: str) -> Iterator[Section]:
        """The sections in another format; nothing is shared with these."""
        storage = FORMATS.get(variant)
        walk = LayerWalk(self.snapshot, self.dtype) if storage.uses_grid else None
        if walk is not None:
            # A source file that was never read would be counted among the memory of the model.
            for name in (name for section in self.sections for name in section.stored):
                walk.grid(name)
        return self._encoded(storage, walk)

    def _encoded(self, storage: type[Format], walk: LayerWalk | None) -> Iterator[Section]:
        for section in self.sections:
            stored = {}
            for name, dense in section.stored.items():
                grid: BlockGrid | None = None if walk is None else walk.grid(name)
                stored[name] = storage.encode_on(dense.decode().clone(), self.pruning.pattern, grid)
            plain = {name: tensor.clone() for name, tensor in section.plain.items()}
            formats = {name: storage.chosen(item) for name, item in stored.items()}
            yield Section(section.layer, plain, stored, formats)


def _origin(snapshot: Snapshot, dtype: str, pruning: Pruning, text: TokenWindows | None) -> Iterator[Section]:
    """Pruned weights as dense tensors, section by section."""
    return Compression(snapshot, pruning, DENSE, dtype=dtype, calibration=text).sections()


def _time(cell: Cell, latency: Latency, pruned: _Pruned, cores: Sequence[int]) -> CellResult:
    started = time.perf_counter()
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    model = TimedModel(pruned.snapshot, cell.dtype, pruned.stored_as(cell.variant), latency, pruned.prompt)
    error = _logits_error(cell, model, pruned)
    encode_s = time.perf_counter() - started
    # Anew for every cell: where weights come to lie in memory decides up to a tenth of the time, and the luck of one
    # copy would stand in every ratio.
    dense = TimedModel(
        pruned.snapshot, cell.dtype, _origin(pruned.snapshot, cell.dtype, Pruning(), None), latency, pruned.prompt
    )
    load_s = time.perf_counter() - started - encode_s
    read = model.reader()
    ours: list[Times] = []
    theirs: list[Times] = []
    reads: list[float] = []
    for _ in range(latency.repeats):
        theirs.append(dense.decode())
        ours.append(model.decode())
        reads += [read() for _ in range(_READS)] if read is not None else []
    evaluate_s = time.perf_counter() - started - encode_s - load_s
    rows = figures(model, dense, ours, theirs, reads, pruned.zeros, error)
    names = sorted({stored.kernel for stored in model.pruned()})
    snapshot = pruned.snapshot
    notes = {
        "isa": kernels.isa() or "torch",
        "decoder": model.decoder,
        "cores": list(cores),
        "formats": Counter(model.assembled.formats.values()),
    }
    row = key_row(cell) | {
        "trained": snapshot.trained,
        "published_dtype": snapshot.published_dtype,
        "source_bytes": snapshot.source_bytes if snapshot.trained else 0,
        "snapshot_digest": snapshot.digest,
        "evaluation_digest": "",
        "calibration_digest": pruned.text_digest,
        "lossless": FORMATS.get(cell.variant).lossless,
        "kernel": ", ".join(names) or "torch.linear",
        "mark": "",
        "notes": json.dumps(notes, sort_keys=True),
        "load_s": load_s,
        "dense_s": sum(run.prompt_s + sum(run.tokens_s) for run in theirs),
        "prune_s": pruned.prune_s,
        "encode_s": encode_s,
        "evaluate_s": evaluate_s,
        "wall_s": time.perf_counter() - started,
        "peak_rss_bytes": peak_rss_bytes(),
        "threads": torch.get_num_threads(),
        "cpu_model": cpu_model(),
        "device_name": cpu_model(),
        "started_at": started_at,
    }
    return CellResult(row, rows)


def _logits_error(cell: Cell, model: TimedModel, pruned: _Pruned) -> float:
    """Largest difference from the masked model's logits, relative to the largest of them."""
    error = float((model.logits() - pruned.logits).abs().max() / pruned.logits.abs().max())
    if FORMATS.get(cell.variant).lossless and not error <= LOGITS_TOLERANCE[cell.dtype]:
        raise SparseHPCError(
            f"logits of {cell.variant} differ from the masked model's by {error:.2g} of the largest; "
            f"at most {LOGITS_TOLERANCE[cell.dtype]:g} can come from rounding"
        )
    return error

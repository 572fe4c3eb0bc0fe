"""Pruned 4-bit weights beside the 4-bit file they come from: bytes of every tensor, and whether every bit is kept."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.bench import Row
from jobs.bench._stack import TARGETS, numbers
from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Pruning, decimal_text

_SPARSITIES = (30, 50, 70)
_FORMAT = "bitmap-q4"


def run(options: Mapping[str, str]) -> list[Row]:
    """Count.

    Options: ``model`` (smollm2-135m; a GGUF file whose linears are Q4_1), ``sparsities`` (30+50+70). No time is taken:
    ratio is bytes of the file's own tensors / ours, over the linears of attention and MLP. Magnitude chooses the zeros;
    what is stored is compared bit for bit with the same weights as zeros in place.
    """
    if wrong := set(options) - {"model", "sparsities"}:
        raise UserError(f"suite source has no option {sorted(wrong)[0]!r}; legal: model, sparsities")
    percents = numbers(options, "sparsities", _SPARSITIES)

    import torch

    from sparsehpc.compress import Compression
    from sparsehpc.models.gguf_source import block_grid, source_of
    from sparsehpc.models.sources import prepare

    snapshot = prepare(options.get("model", "smollm2-135m"))
    linears = snapshot.structure.prunable(TARGETS)
    if without := [p.name for p in linears if block_grid(snapshot, p.name) is None]:
        raise UserError(f"{without[0]} of {snapshot.model} does not come from a Q4_1 tensor of a GGUF file")
    source_bytes = sum(source_of(snapshot).raw(p.name)[1].nbytes for p in linears)
    weights = sum(p.numel for p in linears)
    rows: list[Row] = []
    for percent in percents:
        pruning = Pruning(
            method="magnitude", pattern="unstructured", sparsity=decimal_text(f"0.{percent:02d}"), targets=TARGETS
        )
        ours, exact = 0, True
        pair = (Compression(snapshot, pruning, form).sections() for form in (_FORMAT, "masked"))
        for packed, masked in zip(*pair, strict=True):
            for name, stored in packed.stored.items():
                ours += stored.nbytes
                exact = exact and torch.equal(stored.decode(), masked.stored[name].decode())
        rows.append(
            {
                "suite": "source",
                "work": f"bytes {_FORMAT}",
                "baseline": "Q4_1 tensors of the file",
                "ratio": source_bytes / ours,
                "share": ours / source_bytes,
                "bytes": ours,
                "baseline_bytes": source_bytes,
                "bits_per_weight": 8 * ours / weights,
                "baseline_bits_per_weight": 8 * source_bytes / weights,
                "bit_exact": exact,
                "lossless": exact,
                "model": snapshot.model,
                "params": weights,
                "sparsity": percent / 100,
                "dtype": "float32",
            }
        )
    return rows

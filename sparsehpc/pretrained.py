"""Save and load pruned models: ``sparsehpc.save_pretrained`` and ``sparsehpc.from_pretrained``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsehpc.compress import Compression
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.core.spec import Cell, Pruning, Windows
from sparsehpc.models.assemble import Assembled, assemble
from sparsehpc.models.packed import PackedModel
from sparsehpc.models.packed_writer import check_new_folder, write_packed
from sparsehpc.models.snapshot import Snapshot, open_snapshot
from sparsehpc.text.build import calibration_windows
from sparsehpc.text.tokenizer import load_tokenizer
from sparsehpc.text.windows import TokenWindows

Progress = Callable[[str, int, int], None]


def save_pretrained(what: Any, folder: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write a pruned model: packed arrays in safetensors, recipe, config and tokenizer.

    Parameters
    ----------
    what
        A model of `from_pretrained` or `sparsehpc.models.assemble.assemble`; or a `sparsehpc.core.spec.Cell`, which is
        pruned and written one decoder layer at a time.
    folder
        Where to; nothing is overwritten.
    progress
        Called with a stage, steps done and steps in all.

    Returns
    -------
    dict
        What sparsehpc.json says: recipe, bytes by component, formats, checksums.

    Raises
    ------
    UserError
        The folder holds something, the model is not prepared, the cell cannot be.
    """
    if isinstance(what, Cell):
        snapshot = open_snapshot(what.model, what.revision)
        return compress(
            snapshot, what.pruning, what.variant, Path(folder), dtype=what.dtype, device=what.device,
            held_out=what.evaluation, progress=progress,
        )  # fmt: skip
    assembled = getattr(what, "sparsehpc", None)
    if not isinstance(assembled, Assembled):
        raise UserError(
            f"a {type(what).__name__} cannot be saved",
            "pass a model that sparsehpc assembled, or a Cell; sparsehpc prune MODEL writes one from the command line",
        )
    return write_packed(
        Path(folder), assembled.folder, assembled.structure, assembled.dtype, assembled.sections(), assembled.recipe
    )


def from_pretrained(folder: str | Path, *, device: str = "cpu", fuse: bool = True, verify: bool = True) -> Any:
    """Load what `save_pretrained` or ``sparsehpc prune`` wrote, as a transformers model that runs on packed weights.

    Parameters
    ----------
    folder
        The folder.
    device
        Where the model runs.
    fuse
        Multiply linears that read the same input at once.
    verify
        Compare the files with their checksums; sizes and arrays are checked in any case.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode; ``generate`` works, training does not. Its tokenizer is
        ``transformers.AutoTokenizer.from_pretrained(folder)``.

    Raises
    ------
    UserError
        The folder holds no packed model, or a damaged one.
    """
    packed = PackedModel(Path(folder), verify=verify)
    return assemble(
        packed.folder,
        packed.structure,
        packed.dtype,
        packed.sections(),
        device=device,
        fuse=fuse,
        recipe=packed.manifest["recipe"],
    )


def compress(
    snapshot: Snapshot,
    pruning: Pruning,
    variant: str,
    folder: Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    held_out: Windows | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prune a prepared model and write it packed, one decoder layer in memory; parameters as for `Compression`.

    Parameters
    ----------
    held_out
        Evaluation text that calibration must not read; None where there is none.

    Returns
    -------
    dict
        The manifest.
    """
    check_new_folder(folder)
    text = read_calibration(snapshot, pruning, held_out)
    work = Compression(snapshot, pruning, variant, dtype=dtype, device=device, calibration=text, progress=progress)
    return write_packed(
        folder,
        snapshot.path,
        snapshot.structure,
        dtype,
        work.sections(),
        lambda: recipe_of(snapshot, pruning, variant, text) | {"notes": work.notes},
    )


def read_calibration(snapshot: Snapshot, pruning: Pruning, held_out: Windows | None) -> TokenWindows | None:
    """Calibration windows of a combination, or None where it names none."""
    if pruning.calibration is None:
        return None
    tokenizer = load_tokenizer(snapshot.path)
    return calibration_windows(pruning.calibration, held_out, tokenizer, snapshot.structure.max_positions)


def recipe_of(snapshot: Snapshot, pruning: Pruning, variant: str, text: TokenWindows | None) -> dict[str, Any]:
    """How a model was made, for its manifest; holds no path of this machine."""
    calibration = None
    if pruning.calibration is not None:
        if text is None:
            raise SparseHPCError("a calibration without its text")
        calibration = dataclasses.asdict(pruning.calibration) | {
            "corpus": _public(pruning.calibration.corpus),
            "digest": text.digest,
            "source": text.source,
        }
    return {
        "model": _public(snapshot.model),
        "revision": snapshot.revision,
        "snapshot_digest": snapshot.digest,
        "trained": snapshot.trained,
        "published_dtype": snapshot.published_dtype,
        "source_bytes": snapshot.source_bytes,
        **dataclasses.asdict(pruning),
        "options": dict(pruning.options),
        "targets": list(pruning.targets),
        "calibration": calibration,
        "variant": variant,
    }


def _public(name: str) -> str:
    """A name as it may be published: of a path only the last part is left."""
    kind, colon, path = name.rpartition(":")
    looks_local = path.startswith(("/", ".", "~")) or Path(path).expanduser().exists()
    return f"{kind}{colon}{Path(path).name}" if looks_local else name

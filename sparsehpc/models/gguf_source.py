"""Snapshots made from GGUF files, and the way back to a file's raw 4-bit codes."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsehpc.core.errors import UserError
from sparsehpc.formats.base import BlockGrid
from sparsehpc.models.gguf_file import GGUFModel, package_file
from sparsehpc.models.seal import seal
from sparsehpc.models.snapshot import Snapshot
from sparsehpc.models.target import Target
from sparsehpc.models.weight_files import ShardWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Q4_1_BLOCK_WEIGHTS = 32
_Q4_1_BLOCK_BYTES = 20


def source_path(target: Target) -> Path:
    """Find the GGUF file of a target."""
    if target.shipped is not None and target.shipped.package:
        return package_file(target.shipped.package)
    if target.path is None:
        raise UserError(f"{target.model} is no GGUF file")
    return target.path


def build(target: Target, folder: Path, progress: Callable[[str], object]) -> Snapshot:
    """Dequantise a GGUF file into ``folder``, one tensor at a time."""
    import torch

    path = source_path(target)
    model = GGUFModel(path)
    writer, announced = ShardWriter(folder), -1
    for parameter in model.structure.unique:
        if parameter.layer is not None and parameter.layer > announced:
            announced = parameter.layer
            progress(f"dequantising layer {announced + 1} of {model.structure.layers}")
        # A copy: what numpy mapped from the file is read-only.
        writer.add(parameter.name, torch.from_numpy(np.array(model.dequantized(parameter))))
    writer.close()
    (folder / "config.json").write_text(json.dumps(model.config, indent=1) + "\n", encoding="utf-8")
    progress("converting the tokenizer")
    write_tokenizer(path, folder)
    source: dict[str, Any] = {"kind": target.kind, **fingerprint(path)}
    if target.shipped is not None:
        name = target.shipped.package.partition("==")[0]
        source["package"] = f"{name}=={importlib.metadata.version(name)}"
    return seal(
        folder,
        model=target.model,
        revision=None,
        trained=True,
        published_dtype=target.shipped.dtype if target.shipped else model.published_dtype,
        source_bytes=path.stat().st_size,
        source=source,
    )


def fingerprint(path: Path) -> dict[str, Any]:
    """Cheap identity of a local file: path, bytes and time of the last change."""
    status = path.stat()
    return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def write_tokenizer(path: Path, folder: Path) -> None:
    """Write the tokenizer that a GGUF file describes, as transformers converts it."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(f"the tokenizer of {path} cannot be converted: {error}") from error
    tokenizer.save_pretrained(str(folder))


@functools.lru_cache(maxsize=1)
def _opened(path: Path, mtime_ns: int) -> GGUFModel:
    return GGUFModel(path)


def source_of(snapshot: Snapshot) -> GGUFModel:
    """Open the GGUF file that a snapshot was made from."""
    source: Mapping[str, Any] = snapshot.source
    if source["kind"] not in ("package", "gguf"):
        raise UserError(f"{snapshot.model} was not made from a GGUF file but from a {source['kind']}")
    path = package_file(source["package"]) if source["kind"] == "package" else Path(source["path"])
    if not path.is_file() or path.stat().st_size != source["bytes"]:
        raise UserError(
            f"{path}, which {snapshot.model} was made from, is gone or was changed",
            f"sparsehpc prepare {snapshot.model} makes the snapshot again",
        )
    return _opened(path, path.stat().st_mtime_ns)


def block_grid(snapshot: Snapshot, name: str) -> BlockGrid | None:
    """The 4-bit grid that a parameter was published on, or None where it was published otherwise.

    Raises
    ------
    UserError
        The snapshot was made from a GGUF file that is gone: its grid must not be guessed.
    """
    import torch

    if snapshot.source["kind"] not in ("package", "gguf") or source_of(snapshot).raw(name)[0] != "Q4_1":
        return None
    _, scale, minimum = read_q4_1(snapshot, name)
    return BlockGrid(torch.from_numpy(scale.copy()), torch.from_numpy(minimum.copy()))


def read_q4_1(snapshot: Snapshot, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Read the 4-bit codes of a parameter from the GGUF file a snapshot was made from.

    The weight is ``scale * code + minimum`` in float32, one scale and minimum for 32 consecutive columns.

    Parameters
    ----------
    snapshot
        Made from a GGUF file that is still there.
    name
        Parameter stored as Q4_1.

    Returns
    -------
    codes, scale, minimum
        uint8 rows x columns; float16 rows x columns/32; the same. Rows lie as in the snapshot.
    """
    kind, rows = source_of(snapshot).raw(name)
    if kind != "Q4_1":
        raise UserError(f"{name} of {snapshot.model} is stored as {kind}, not as Q4_1")
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, _Q4_1_BLOCK_BYTES)
    scale = np.ascontiguousarray(blocks[:, :, 0:2]).view(np.float16)[:, :, 0]
    minimum = np.ascontiguousarray(blocks[:, :, 2:4]).view(np.float16)[:, :, 0]
    packed = blocks[:, :, 4:]
    codes = np.concatenate([packed & 0x0F, packed >> 4], axis=2)
    return codes.reshape(len(rows), blocks.shape[1] * _Q4_1_BLOCK_WEIGHTS), scale, minimum

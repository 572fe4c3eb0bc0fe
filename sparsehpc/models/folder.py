"""Models in local folders: safetensors are used where they lie, anything else is converted once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsehpc.core.errors import UserError
from sparsehpc.models.checkpoint import Checkpoint, weight_file_names
from sparsehpc.models.seal import seal
from sparsehpc.models.snapshot import Snapshot
from sparsehpc.models.target import Target, read_config

_COPIED = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def build(target: Target, folder: Path, progress: Callable[[str], object]) -> Snapshot:
    """Make a snapshot of a local folder in ``folder``."""
    if target.path is None:
        raise UserError(f"{target.model} is no folder")
    source = {"kind": "folder", "path": str(target.path), "files": fingerprint(target.path)}
    return build_from(
        target.path, folder, progress, model=target.model, revision=None, source=source, place=_link_symbolically
    )


def build_from(
    origin: Path,
    folder: Path,
    progress: Callable[[str], object],
    *,
    model: str,
    revision: str | None,
    source: Mapping[str, Any],
    place: Callable[[Path, Path], object],
) -> Snapshot:
    """Make a snapshot of what ``save_pretrained`` wrote, or a hub repository holds.

    Parameters
    ----------
    origin
        Folder of config.json, weights and tokenizer.
    folder
        Empty folder that becomes the snapshot.
    progress
        Called with lines of text.
    model, revision, source
        For the manifest.
    place
        Puts a weight file that can be used as it is into the snapshot.
    """
    config = read_config(origin)
    checkpoint = Checkpoint(origin, config)
    if checkpoint.left_out:
        names = ", ".join(checkpoint.left_out[:3]) + (", ..." if len(checkpoint.left_out) > 3 else "")
        progress(f"left out {len(checkpoint.left_out)} tensors that the model does not use: {names}")
    for name in _COPIED:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    if checkpoint.usable_as_is:
        for name in checkpoint.files:
            place(origin / name, folder / name)
        index = origin / "model.safetensors.index.json"
        if index.is_file():
            shutil.copyfile(index, folder / index.name)
    else:
        checkpoint.convert(folder, progress)
    write_tokenizer(origin, folder, progress)
    return seal(
        folder,
        model=model,
        revision=revision,
        trained=True,
        published_dtype=checkpoint.dtype,
        source_bytes=checkpoint.bytes,
        source=source,
    )


def fingerprint(folder: Path) -> dict[str, list[int]]:
    """Bytes and time of the last change of the files that make the model: notices a change without reading them."""
    names = [*weight_file_names(folder), *_COPIED, *TOKENIZER_FILES]
    found = ((name, folder / name) for name in names)
    return {name: [file.stat().st_size, file.stat().st_mtime_ns] for name, file in found if file.is_file()}


def write_tokenizer(origin: Path, folder: Path, progress: Callable[[str], object]) -> None:
    """Copy ``tokenizer.json`` and what goes with it, or convert an older tokenizer (``vocab.json``, ...)."""
    if (origin / "tokenizer.json").is_file():
        for name in TOKENIZER_FILES:
            if (origin / name).is_file():
                shutil.copyfile(origin / name, folder / name)
        return
    progress("converting the tokenizer")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(origin), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust side raises plain Exception
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{origin} holds no tokenizer.json, and no tokenizer that can be converted: {first}") from error
    tokenizer.save_pretrained(str(folder))


def _link_symbolically(origin: Path, place: Path) -> None:
    place.symlink_to(origin)


def link_or_copy(origin: Path, place: Path) -> None:
    """Share a file's bytes where the file system can, else copy them."""
    real = origin.resolve()
    try:
        os.link(real, place)
    except OSError:
        shutil.copyfile(real, place)

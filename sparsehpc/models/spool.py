"""Stored weights of one cell, kept for generation after the walk: in memory, or packed in files past the budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sparsehpc.core.files import write_atomically
from sparsehpc.formats.base import FORMATS

if TYPE_CHECKING:
    from sparsehpc.formats.base import Stored


class LayerStore:
    """Stored linears of every decoder layer of one cell.

    Parameters
    ----------
    folder
        Where layers are packed; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._layers: dict[int, dict[str, Stored]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def on_disk(self) -> bool:
        """Whether layers are read from files."""
        return self._folder is not None

    def put(self, layer: int, variant: str, stored: Mapping[str, Stored]) -> None:
        """Keep one layer's storage, written in format ``variant``."""
        if self._folder is None:
            self._layers[layer] = dict(stored)
            return
        arrays = {
            f"{name}|{component}": array.contiguous().cpu()
            for name, storage in stored.items()
            for component, array in storage.components().items()
        }
        chosen = FORMATS.get(variant).chosen
        kinds = {name: [chosen(storage), *storage.shape, str(storage.dtype)] for name, storage in stored.items()}
        write_atomically(
            self._folder / f"{layer}.safetensors",
            lambda path: save_file(arrays, path, metadata={"kinds": json.dumps(kinds)}),
        )

    def recall(self, memory_bytes: int | None, device: str) -> None:
        """Bring all layers back to memory where they fit: generation walks them once for every token."""
        if self._folder is None:
            return
        files = list(self._folder.glob("*.safetensors"))
        packed = sum(file.stat().st_size for file in files)
        if memory_bytes is None or packed <= memory_bytes:
            self._layers = {int(file.stem): self.get(int(file.stem), device) for file in files}
            self._folder = None

    def get(self, layer: int, device: str) -> dict[str, Stored]:
        """Return one layer's storage."""
        if self._folder is None:
            return self._layers[layer]
        file = self._folder / f"{layer}.safetensors"
        with safe_open(file, framework="pt") as opened:
            kinds = json.loads(opened.metadata()["kinds"])
        arrays: dict[str, dict[str, torch.Tensor]] = {}
        for key, array in load_file(file, device=device).items():
            name, _, component = key.rpartition("|")
            # Into torch's own memory: a mapped file's pages would stay, and its alignment can change results.
            arrays.setdefault(name, {})[component] = array.clone()
        return {
            name: FORMATS.get(variant).from_components(
                arrays.get(name, {}), (rows, columns), getattr(torch, dtype.removeprefix("torch."))
            )
            for name, (variant, rows, columns, dtype) in kinds.items()
        }

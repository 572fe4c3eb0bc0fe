"""Stored weights of one cell, kept for generation after the walk: in memory, or packed in files past the budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from sparsehpc.formats.base import FORMATS

if TYPE_CHECKING:
    import torch

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
        self._shapes: dict[int, dict[str, tuple[str, tuple[int, int], torch.dtype]]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

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
        save_file(arrays, self._folder / f"{layer}.safetensors")
        self._shapes[layer] = {name: (variant, storage.shape, storage.dtype) for name, storage in stored.items()}

    def recall(self, memory_bytes: int | None, device: str) -> None:
        """Bring all layers back to memory where they fit: generation walks them once for every token."""
        if self._folder is None:
            return
        packed = sum(file.stat().st_size for file in self._folder.iterdir())
        if memory_bytes is None or packed <= memory_bytes:
            self._layers = {layer: self.get(layer, device) for layer in self._shapes}
            self._folder = None

    def get(self, layer: int, device: str) -> dict[str, Stored]:
        """Return one layer's storage."""
        if self._folder is None:
            return self._layers[layer]
        arrays: dict[str, dict[str, torch.Tensor]] = {}
        for key, array in load_file(self._folder / f"{layer}.safetensors", device=device).items():
            name, _, component = key.rpartition("|")
            # Into torch's own memory: a mapped file's pages would stay, and its alignment can change results.
            arrays.setdefault(name, {})[component] = array.clone()
        return {
            name: FORMATS.get(variant).from_components(arrays.get(name, {}), shape, dtype)
            for name, (variant, shape, dtype) in self._shapes[layer].items()
        }

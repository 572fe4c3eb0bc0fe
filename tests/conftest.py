"""Fixtures that several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch use one thread: tiny matrices only lose by waiting for a second one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Make an untrained snapshot of a tiny config, once per config and session.

    Norms and biases are random too: untrained models have ones and zeros there, with which a bias that nobody adds
    goes unnoticed.
    """
    from sparsehpc.models.random_weights import write_random_snapshot
    from sparsehpc.models.seal import seal

    made: dict[str, Any] = {}

    def make(config: dict[str, Any], seed: int = 0) -> Any:
        key = f"{sorted(config.items())}{seed}"
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny") / str(config["model_type"])
            snapshot = write_random_snapshot(config, folder, seed)
            stir_vectors(snapshot, seed)
            made[key] = seal(
                folder,
                model=snapshot.model,
                revision=None,
                trained=False,
                published_dtype=snapshot.published_dtype,
                source_bytes=snapshot.source_bytes,
                source=snapshot.source,
            )
        return made[key]

    return make


def stir_vectors(snapshot: Any, seed: int) -> None:
    """Add noise to every norm and bias of a snapshot whose weights lie in one file."""
    import torch
    from safetensors.torch import load_file, save_file

    (name,) = snapshot.weight_files
    tensors = load_file(snapshot.path / name)
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors.values():
        if tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
    save_file(tensors, snapshot.path / name, metadata={"format": "pt"})

"""Greedy generation, streamed: every step walks the layers with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from sparsehpc.core.machine import return_freed_memory

if TYPE_CHECKING:
    from sparsehpc.models.spool import LayerStore
    from sparsehpc.models.stream import LayerWalk


def generate(
    walk: LayerWalk,
    prompts: torch.Tensor,
    new_tokens: int,
    plain: Sequence[Mapping[str, torch.Tensor]],
    store: LayerStore,
    biases: Callable[[int], AbstractContextManager[None]] = lambda layer: nullcontext(),
) -> torch.Tensor:
    """Continue equally long prompts greedily (ties: lowest id).

    Parameters
    ----------
    walk
        The model's walk, with what lies outside the layers loaded.
    prompts
        Token ids, prompts x length; no padding.
    new_tokens
        Tokens to add to each.
    plain
        Norms and biases of every layer.
    store
        Stored linears of every layer.
    biases
        Puts other biases into a layer while it runs.

    Returns
    -------
    tokens
        The continuations, prompts x new_tokens.
    """
    cache = DynamicCache(config=walk.model.config)
    ids = prompts.to(walk.device)
    generated = []
    for _ in range(new_tokens):
        hidden, call = walk.embed(ids, cache)
        for layer in range(walk.structure.layers):
            walk.fill(plain[layer])
            walk.install(store.get(layer, walk.device))
            with biases(layer):
                hidden = walk.run(layer, hidden, call)
            walk.unload(layer)
            if store.on_disk:
                # Read again for every token: what the allocator keeps between layers would come to more than a layer.
                return_freed_memory()
        ids = walk.head(hidden[:, -1:])[:, -1].argmax(dim=-1, keepdim=True)
        generated.append(ids.cpu())
    return torch.cat(generated, dim=1)

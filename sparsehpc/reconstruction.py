"""How far a pruned linear's outputs are from the dense one's, on a sample of the inputs the dense model feeds it.

The layer-wise objective that SparseGPT, ALPS and others minimise, measured for every method alike and on the evaluation
text: the squared error of the outputs as a part of the dense outputs' squares, before anything that other layers'
pruning changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparsehpc.models.stream import LayerWalk

#: Tokens of a sample at most: spread evenly over the evaluation text, enough for a figure of two digits.
SAMPLE_TOKENS = 64


@contextmanager
def sampled_inputs(walk: LayerWalk, names: Collection[str], tokens: int) -> Iterator[dict[str, torch.Tensor]]:
    """Collect inputs of some linears while the block runs all evaluation windows.

    Parameters
    ----------
    walk
        The walk, with the linears' section loaded.
    names
        Names of the weights.
    tokens
        Tokens that will run.

    Yields
    ------
    samples
        By name: at most `SAMPLE_TOKENS` of the tokens x in_features, in the middle of stretches of equal length; empty
        until the block has ended. Linears that read the same tensor share one.
    """
    stride = max(1, -(-tokens // SAMPLE_TOKENS))
    leaders: dict[str, str] = {}
    parts: dict[str, list[torch.Tensor]] = {}
    read: dict[str, int] = {}
    now: list[tuple[torch.Tensor, str]] = []

    def observe(name: str, x: torch.Tensor) -> None:
        for earlier, leader in now:
            if earlier is x:
                leaders[name] = leader
                return
        # What the layer read before is still held here, so that an identity is never that of a freed tensor.
        now[:] = [(earlier, leader) for earlier, leader in now if leader != name] + [(x, name)]
        flat = x.reshape(-1, x.shape[-1])
        first = (stride // 2 - read.get(name, 0)) % stride
        read[name] = read.get(name, 0) + len(flat)
        leaders[name] = name
        parts.setdefault(name, []).append(flat[first::stride].clone())

    samples: dict[str, torch.Tensor] = {}
    with walk.observing(names, observe):
        yield samples
    joined = {name: torch.cat(found) for name, found in parts.items()}
    samples.update({name: joined[leader] for name, leader in leaders.items()})


def output_errors(
    inputs: Mapping[str, torch.Tensor],
    dense: Mapping[str, torch.Tensor],
    used: Mapping[str, torch.Tensor],
    biases: Mapping[str, torch.Tensor | None],
) -> dict[str, tuple[float, float]]:
    """Squared error of the outputs and squares of the dense outputs (bias apart), by weight name.

    Parameters
    ----------
    inputs
        Samples, tokens x in_features.
    dense, used
        Weights, out_features x in_features; those in ``used`` are compared. Products are taken in float32, sums in
        float64.
    biases
        What a method adds to the bias of a linear to make up for what it removes; None takes a bias away, and where
        it does, no output is left to compare.
    """
    errors = {}
    for name, weight in used.items():
        if name not in inputs or (name in biases and biases[name] is None):
            continue
        x = inputs[name].float()
        wanted = x @ dense[name].float().T
        got = x @ weight.float().T
        if (change := biases.get(name)) is not None:
            got += change.float()
        errors[name] = (_squares(wanted - got), _squares(wanted))
    return errors


def _squares(x: torch.Tensor) -> float:
    return float(x.double().square().sum())

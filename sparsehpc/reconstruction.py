"""How far a pruned linear's outputs are from the dense one's, on a sample of the inputs the dense model feeds it.

The layer-wise objective that SparseGPT, ALPS and others minimise, measured for every method alike and on the evaluation
text: the squared error of the outputs as a part of the dense outputs' squares, before anything that other layers'
pruning changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparsehpc.models.stream import LayerWalk

#: Tokens of a sample at most: spread evenly over the evaluation text, enough for a figure of two digits.
SAMPLE_TOKENS = 64


class Sample:
    """A few inputs of one linear, and what the dense weight makes of them.

    Parameters
    ----------
    inputs
        Tokens x in_features.
    weight
        The dense weight, out_features x in_features.
    """

    def __init__(self, inputs: torch.Tensor, weight: torch.Tensor) -> None:
        self._inputs = inputs.float()
        self._wanted = self._inputs @ weight.float().T
        self._squares = _squares(self._wanted)

    def error(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> tuple[float, float]:
        """Squared error of the outputs, and squares of the dense outputs without their bias.

        Parameters
        ----------
        weight
            What is used instead, out_features x in_features. Products are taken in float32, sums in float64.
        bias
            What the method adds to the bias to make up for what it removes.
        """
        got = self._inputs @ weight.float().T
        if bias is not None:
            got += bias.float()
        return _squares(self._wanted - got), self._squares


@contextmanager
def sampled(walk: LayerWalk, weights: Mapping[str, torch.Tensor], tokens: int) -> Iterator[dict[str, Sample]]:
    """Collect inputs of some linears while the block runs all evaluation windows through the dense layer.

    Parameters
    ----------
    walk
        The walk, with the linears' section loaded.
    weights
        Dense weights of the linears, by name.
    tokens
        Tokens that will run.

    Yields
    ------
    samples
        By name, of at most `SAMPLE_TOKENS` tokens in the middle of stretches of equal length; empty until the block has
        ended.
    """
    stride = max(1, -(-tokens // SAMPLE_TOKENS))
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in weights}
    read = dict.fromkeys(weights, 0)

    def observe(name: str, x: torch.Tensor) -> None:
        flat = x.reshape(-1, x.shape[-1])
        parts[name].append(flat[(stride // 2 - read[name]) % stride :: stride].clone())
        read[name] += len(flat)

    samples: dict[str, Sample] = {}
    with walk.observing(weights, observe):
        yield samples
    samples |= {name: Sample(torch.cat(found), weights[name]) for name, found in parts.items()}


def output_errors(
    samples: Mapping[str, Sample],
    weights: Mapping[str, torch.Tensor],
    biases: Mapping[str, torch.Tensor | None],
) -> dict[str, tuple[float, float]]:
    """Errors of the sampled linears among some weights (see `Sample.error`), by name.

    Parameters
    ----------
    samples
        What `sampled` collected.
    weights
        Weights that are used, zeros in place.
    biases
        Changes of biases by a method; None takes a bias away with all outputs, so that there is nothing to compare.
    """
    return {
        name: samples[name].error(weight, biases.get(name))
        for name, weight in weights.items()
        if name in samples and not (name in biases and biases[name] is None)
    }


def _squares(x: torch.Tensor) -> float:
    return float(x.double().square().sum())

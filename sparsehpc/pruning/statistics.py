"""Statistics of a linear layer's inputs, accumulated window by window and freed with the layer.

All sums run in float64 whatever the activations' type: the sum of squares of a float16 overflows at 65504, and a
float32 sum over a hundred thousand tokens loses the digits that decide ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch

from sparsehpc.core.errors import CellError

if TYPE_CHECKING:
    from sparsehpc.pruning.types import Statistic

#: Type of every accumulated statistic.
DTYPE: Final = torch.float64


class Collector:
    """Accumulates what a method needs to know about one stream of inputs.

    Linears that read the same tensor (q/k/v, gate/up) share one collector.

    Parameters
    ----------
    statistics
        ``input_norm``: root of the sum of squares of every input feature, (in_features,).
        ``hessian``: X^T X summed over tokens, (in_features, in_features).
        ``input_mean``, ``input_variance``: over tokens, (in_features,); the variance divides by their number.
    in_features
        Width of the inputs.
    device
        Where to accumulate.
    """

    def __init__(self, statistics: Sequence[Statistic], in_features: int, device: torch.device | str = "cpu") -> None:
        self.statistics = tuple(statistics)
        self.tokens = 0
        self._squares = torch.zeros(in_features, dtype=DTYPE, device=device)
        self._total = torch.zeros(in_features, dtype=DTYPE, device=device)
        self._hessian: torch.Tensor | None = None
        if "hessian" in self.statistics:
            self._hessian = torch.zeros(in_features, in_features, dtype=DTYPE, device=device)

    def add(self, inputs: torch.Tensor, name: str) -> None:
        """Add the inputs of one window (tokens x in_features); `CellError` naming the layer if they are not finite."""
        x = inputs.detach().to(DTYPE)
        self.tokens += x.shape[0]
        self._total += x.sum(0)
        if self._hessian is not None:
            self._hessian.addmm_(x.T, x)
        else:
            self._squares += x.square().sum(0)
        sums = self._sums()
        if not bool(torch.isfinite(sums).all()):
            feature = int((~torch.isfinite(sums)).nonzero()[0])
            raise CellError(f"the calibration inputs of {name} hold NaN or Inf (first in input feature {feature})")

    def _sums(self) -> torch.Tensor:
        """Sum of squares of every feature; the Hessian's diagonal holds it already."""
        return self._squares if self._hessian is None else self._hessian.diagonal()

    def result(self) -> dict[str, torch.Tensor]:
        """Statistics by name, as `Method.prune` takes them."""
        found: dict[str, torch.Tensor] = {}
        if self._hessian is not None:
            found["hessian"] = self._hessian
        if "input_norm" in self.statistics:
            found["input_norm"] = self._sums().sqrt()
        mean = self._total / max(self.tokens, 1)
        if "input_mean" in self.statistics:
            found["input_mean"] = mean
        if "input_variance" in self.statistics:
            found["input_variance"] = (self._sums() / max(self.tokens, 1) - mean.square()).clamp_min(0)
        return found


def collector(statistics: Sequence[Statistic], in_features: int, device: torch.device | str = "cpu") -> Collector:
    """Make an empty collector of ``statistics`` for inputs of ``in_features``."""
    return Collector(statistics, in_features, device)

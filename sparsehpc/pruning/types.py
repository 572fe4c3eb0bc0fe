"""What goes into a pruning method and what comes out. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from sparsehpc.models.structure import Parameter

Statistic = Literal["input_norm", "hessian", "input_mean", "input_variance"]


@dataclasses.dataclass(slots=True)
class Pruned:
    """What a method returns for one weight.

    Parameters
    ----------
    weight
        The pruned weight, zeros in place, same shape and dtype as before.
    notes
        What a reader must know (damping steps, ...); goes into the cell row.
    """

    weight: torch.Tensor
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """The place a weight is pruned at.

    Parameters
    ----------
    parameter
        Which weight.
    index
        Its position among all prunable weights of the model, in module order.
    """

    parameter: Parameter
    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class DenseSurvey:
    """What a walk of the dense model over calibration text found before anything is pruned.

    Parameters
    ----------
    inputs
        By weight name: statistics of its inputs.
    influence
        By decoder layer: 1 - mean cosine between what enters and what leaves it, over all tokens.
    """

    inputs: Mapping[str, Mapping[str, torch.Tensor]]
    influence: Mapping[int, float]

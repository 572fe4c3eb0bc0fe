"""The contract of a pruning method.

A method is one file in ``sparsehpc/pruning/methods``: name, citation, options and code together. Importing it
must not import torch. What it must decide is small: which statistics of a layer's inputs it needs, and a pure
function from (weight, statistics, budget) to the pruned weight.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsehpc.core.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sparsehpc.core.spec import Pruning
    from sparsehpc.models.structure import Parameter

METHODS: Registry[type[Method]] = Registry("method", "sparsehpc.pruning.methods")

#: Patterns of zeros. "keep N of M" fixes the sparsity at 1 - N/M.
UNSTRUCTURED = "unstructured"

Statistic = Literal["input_norm", "hessian"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of a method; a subclass lists them with their defaults."""


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


class Method(ABC):
    """A pruning method, made once per combination and job.

    Parameters
    ----------
    pruning
        The combination: pattern, exact sparsity, seed, ...
    options
        The method's options.

    Attributes
    ----------
    name, title, citation, formula
        For tables, documentation and the methods paragraph.
    statistics
        Statistics of the layer inputs it needs; empty for methods without data.
    patterns
        Patterns it can produce.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    formula: ClassVar[str]
    statistics: ClassVar[tuple[Statistic, ...]] = ()
    patterns: ClassVar[tuple[str, ...]] = (UNSTRUCTURED,)
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, pruning: Pruning, options: Options) -> None:
        self.pruning = pruning
        self.options = options

    @classmethod
    def needs_calibration(cls) -> bool:
        """Whether the method reads calibration text."""
        return bool(cls.statistics)

    def survey(self, parameters: Sequence[Parameter], read: Callable[[str], torch.Tensor]) -> None:
        """Look at all weights once before the walk; only methods that rank across layers override this.

        Parameters
        ----------
        parameters
            Prunable parameters in module order.
        read
            Reads one weight; it must not be kept.
        """

    @abstractmethod
    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Prune one weight (out_features x in_features).

        Parameters
        ----------
        weight
            Dense weight; must not be changed in place.
        site
            Which weight it is.
        statistics
            By name: ``input_norm`` (in_features, float64: root of the sum of squares over calibration tokens),
            ``hessian`` (in_features x in_features, float64 or float32 as `statistics.DTYPE` says: X X^T summed).
        """

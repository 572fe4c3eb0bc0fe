"""The contract of a metric: where it looks, and rows of numerators and denominators.

A metric is one file in ``sparsehpc/metrics/measures``. It overrides the hooks it needs; the pipeline calls them and
writes the rows. Importing it must not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from sparsehpc.core.registry import Registry
from sparsehpc.core.schema import Measurement

if TYPE_CHECKING:
    import torch

    from sparsehpc.core.spec import Cell
    from sparsehpc.metrics.positions import DensePositions, Positions
    from sparsehpc.models.structure import Parameter, Structure

METRICS: Registry[type[Metric]] = Registry("metric", "sparsehpc.metrics.measures")


@dataclasses.dataclass(frozen=True, slots=True)
class TensorView:
    """One stored tensor of a cell's model, as `Metric.tensor` sees it.

    Parameters
    ----------
    parameter
        Which tensor.
    prunable
        Whether the cell's targets include it.
    numel, nonzeros
        Weights of the dense tensor, and how many of those the cell keeps that are not zero.
    component_bytes
        Bytes by component, every array of the storage included.
    flops_executed
        Operations per token that the cell's kernel executes for it.
    output_error
        Of a pruned linear: squared error of its outputs on a sample of the dense model's inputs, and the squares of
        the dense outputs (`sparsehpc.reconstruction`); None where they were not compared.
    """

    parameter: Parameter
    prunable: bool
    numel: int
    nonzeros: int
    component_bytes: Mapping[str, int]
    flops_executed: int
    output_error: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class WindowView:
    """One evaluation window of a cell beside the dense model's.

    Parameters
    ----------
    index
        Number of the window.
    ids
        Token ids, length T.
    text_bytes
        UTF-8 bytes that the predicted tokens cover.
    counted
        Positions that agreement and KL count: T for separate documents, T - 1 for windows cut from one text.
    dense, positions
        Per-position figures of the dense model and of the cell: what most metrics need, computed once.
    dense_logits, logits
        The logits themselves, T x vocabulary, in the model's dtype on its device, for a metric that needs more. Only
        valid during the call; a metric that reduces them takes its sums in float64, a block of positions at a time.
    masked_choice
        Choices of the same pruned weights run as a dense matrix with zeros (T), or None where the cell has none.
    """

    index: int
    ids: torch.Tensor
    text_bytes: int
    counted: int
    dense: DensePositions
    positions: Positions
    dense_logits: torch.Tensor
    logits: torch.Tensor
    masked_choice: torch.Tensor | None

    def row(
        self, metric: str, numerator: float, denominator: float = 1.0, reduction: str = "sum", unit: str = "1"
    ) -> Measurement:
        """One row about this window."""
        return Measurement("window", str(self.index), metric, numerator, denominator, reduction, unit)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelView:
    """A whole cell, after its walk.

    Parameters
    ----------
    cell
        The cell.
    structure
        The model's parameters by role.
    published_dtype, source_bytes
        Of the checkpoint as published; 0 bytes for weights that were never published.
    tensors
        Every parameter of the model, tied ones included.
    dense_tokens, tokens
        Greedy continuations of the dense model and of the cell (prompts x new tokens), or None.
    """

    cell: Cell
    structure: Structure
    published_dtype: str
    source_bytes: int
    tensors: Sequence[TensorView]
    dense_tokens: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


class Metric:
    """A figure or a family of figures.

    Attributes
    ----------
    name, summary
        For lists and documentation.
    better
        ``higher``, ``lower`` or ``neither``, by name of each figure.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    better: ClassVar[Mapping[str, str]] = {}

    def window(self, view: WindowView) -> Iterable[Measurement]:
        """Rows of one evaluation window; those of a bin are added up over windows."""
        return ()

    def model(self, view: ModelView) -> Iterable[Measurement]:
        """Rows of the whole cell."""
        return ()

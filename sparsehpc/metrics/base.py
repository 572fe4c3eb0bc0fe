"""The contract of a metric: where it looks, and rows of numerators and denominators.

A metric is one file in ``sparsehpc/metrics/measures``. It overrides the hooks it needs; the pipeline calls them and
writes the rows. Importing it must not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sparsehpc.core.registry import Registry
from sparsehpc.core.schema import Measurement

if TYPE_CHECKING:
    import torch

    from sparsehpc.core.spec import Cell
    from sparsehpc.formats.base import Stored
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
    stored
        The storage object for weights kept in a format; None for plain tensors.
    """

    parameter: Parameter
    prunable: bool
    numel: int
    nonzeros: int
    component_bytes: Mapping[str, int]
    flops_executed: int
    stored: Stored | None = None


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
    every_position
        Whether agreement counts the last position too.
    dense_logits, logits
        T x vocabulary, in the dtype of the model.
    shared
        Scratch of this window for figures of the dense logits that several metrics or cells need.
    """

    index: int
    ids: torch.Tensor
    text_bytes: int
    every_position: bool
    dense_logits: torch.Tensor
    logits: torch.Tensor
    shared: dict[str, Any]


class Generator(Protocol):
    """Greedy continuations, streamed layer by layer."""

    def __call__(self, prompts: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """Continue equally long prompts (prompts x length) greedily: prompts x new_tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelView:
    """A whole cell, after its walk.

    Parameters
    ----------
    cell
        The cell.
    structure
        The model's parameters by role.
    tensors
        Every stored tensor.
    prompts
        Prompts for generation (prompts x length), or None where the cell generates nothing.
    dense_tokens, tokens
        Greedy continuations of the dense model and of the cell (prompts x new tokens), or None.
    """

    cell: Cell
    structure: Structure
    tensors: Sequence[TensorView]
    prompts: torch.Tensor | None
    dense_tokens: torch.Tensor | None
    tokens: torch.Tensor | None


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
        """Rows of one evaluation window."""
        return ()

    def model(self, view: ModelView) -> Iterable[Measurement]:
        """Rows of the whole cell."""
        return ()

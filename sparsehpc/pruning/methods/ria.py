"""RIA: relative importance and activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from sparsehpc.core.errors import UserError
from sparsehpc.pruning.base import METHODS, Method, Options, Pruned, Site

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RiaOptions(Options):
    """Options of RIA.

    Parameters
    ----------
    exponent
        Power of the input norm; 0 leaves relative importance alone, the paper uses 0.5.
    """

    exponent: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= 2:
            raise UserError(f"option 'exponent' of ria is {self.exponent:g}; legal: 0 to 2")


@METHODS.register("ria")
class Ria(Method):
    """Score a weight by its share of its row and of its column, times a power of its input's norm.

    Compared inside each output row. The published code compares inside the whole matrix unless told otherwise
    (and does so for its "wanda" too), and reorders columns before it applies "keep N of M"; neither is done here.
    """

    name = "ria"
    title = "RIA"
    citation = (
        "Zhang, Bai, Lin, Zhao, Hou, Cannistraci: Plug-and-Play: An Efficient Post-training Pruning Method, ICLR 2024"
    )
    formula = "score = (|w_ij| / sum_i |w_ij| + |w_ij| / sum_j |w_ij|) ||x_j||_2^a; lowest of each output row go"
    scope = "row"
    cost = "As Wanda."
    advice = "Where Wanda removes whole input or output channels that hold little weight."
    differs = (
        "Published code ranks over the whole matrix unless told otherwise, and permutes columns before N:M; "
        "here rows are compared, and columns stay where they are."
    )
    statistics = ("input_norm",)
    patterns = ("unstructured", "2:4", "4:8", "1:4")
    allocations = ("default", "uniform", "owl")
    learned_allocations = ("owl",)
    refits = True
    workspace_bytes_per_weight = 24
    options_type: ClassVar[type[Options]] = RiaOptions
    options: RiaOptions

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Remove the lowest scores of each row."""
        from sparsehpc.pruning.selection import check_weight, choose, remove

        check_weight(weight, site.parameter.name)
        magnitude = weight.detach().float().abs()
        # A row or column of zeros alone has no shares; its weights go first whatever their score.
        of_column = magnitude.sum(0, dtype=statistics["input_norm"].dtype).clamp_min(1e-300)
        of_row = magnitude.sum(1, keepdim=True, dtype=statistics["input_norm"].dtype).clamp_min(1e-300)
        scores = (magnitude / of_column + magnitude / of_row) * statistics["input_norm"] ** self.options.exponent
        return Pruned(remove(weight, choose(scores.float(), weight, self.pattern, self.sparsity(site), "row")))

"""Random pruning: the baseline every score must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsehpc.pruning.base import METHODS, Method, Pruned, Site
from sparsehpc.pruning.patterns import removed_count

if TYPE_CHECKING:
    import torch

    from sparsehpc.pruning.structured import Units


@METHODS.register("random")
class Random(Method):
    """Remove weights at random, the same share of every matrix.

    The draw depends on the study's seed and the tensor's name alone, neither on device, threads or the order of
    tensors, nor on numpy's or torch's version: raw output of the PCG64 bit generator. A larger sparsity removes
    everything that a smaller one does.
    """

    name = "random"
    title = "Random"
    citation = "Liu et al.: The Unreasonable Effectiveness of Random Pruning, ICLR 2022"
    formula = "score ~ uniform; the floor(s n) lowest of the n weights of each matrix go"
    cost = "One random number a weight (or block)."
    advice = "The floor: a score that does not beat it carries no information."
    differs = "The draw depends on seed and tensor name, not on the order of tensors or the device."
    patterns = ("unstructured", "2:4", "4:8", "1:4", "block8x8", "block16x16", "heads", "neurons")
    allocations = ("default", "uniform")
    refits = True

    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Remove a random choice of one matrix."""
        from sparsehpc.pruning.selection import (
            check_weight,
            expand_blocks,
            lowest,
            lowest_in_groups,
            remove,
            square_blocks,
            with_zeros_first,
        )

        name, pattern = site.parameter.name, self.pattern
        check_weight(weight, name)
        ranked = square_blocks(weight, pattern.rows, pattern.columns) if pattern.kind == "block" else weight
        scores = with_zeros_first(self._draw(name, ranked.shape).to(weight.device), ranked)
        if pattern.kind == "keep":
            return Pruned(remove(weight, lowest_in_groups(scores, pattern.keep, pattern.of)))
        mask = lowest(scores, removed_count(self.pruning.fraction, ranked.numel()))
        return Pruned(remove(weight, expand_blocks(mask, pattern.rows, pattern.columns)))

    def _draw(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Uniform scores in [0, 1), float32, from seed and tensor name."""
        import numpy as np
        import torch

        digest = hashlib.sha256(f"{self.pruning.seed}\0{name}".encode()).digest()
        total = shape[0] * shape[1]
        raw = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw((total + 1) // 2)
        # The upper 24 bits of each half are what float32 holds exactly.
        upper = raw.astype("<u8").view("<u4")[:total] >> np.uint32(8)
        return torch.from_numpy(upper.astype(np.float32) * np.float32(2**-24)).view(shape)

    def unit_scores(
        self,
        units: Units,
        weights: Mapping[str, torch.Tensor],
        statistics: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> torch.Tensor:
        """Uniform scores, drawn by the name of the matrix that reads the units."""
        name = units.reader.parameter.name
        return self._draw(name, (1, units.count))[0].double().to(weights[name].device)

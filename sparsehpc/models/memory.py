"""How much memory a walk will take, from a model's structure alone. Needs no torch.

At any moment a walk holds the interpreter, the hidden states of its streams (on disk past the budget), and either
one decoder layer with its pruned twin, its stored copy and the method's workspace, or what lies outside the layers
with the logits of one window. The peak is the larger of the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from sparsehpc.core.spec import DENSE, DTYPE_BYTES, Cell
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.structure import Structure

#: Python with torch and transformers loaded, measured on Linux with CPU wheels.
INTERPRETER_BYTES: Final = 430 * 2**20
#: Square float64 matrices of the widest input that a method with a Hessian holds at once: the sum of X X^T, its
#: damped copy, the Cholesky factor, the inverse, and the inverse's factor.
HESSIAN_COPIES: Final = 5
#: What a refit works on: ten float64 tensors of conjugate gradients on all outputs at once.
REFIT_BYTES_PER_WEIGHT: Final = 80
#: Tokens of all prompts and their continuations, whose keys and values one track holds.
CACHED_TOKENS: Final = 20 * (16 + 24)
#: Positions whose logits are held in float64 at once, and copies of them; see `metrics.positions`.
_BLOCK_POSITIONS, _BLOCK_COPIES = 8, 6


def kept_tracks(structure: Structure, cells: Iterable[Cell]) -> tuple[int, ...]:
    """Bytes that each stream's decoder layers take while they are kept for generation, the dense model's first.

    Parameters
    ----------
    structure
        The model.
    cells
        Cells of one walk. A format whose bytes depend on where the zeros lie counts as dense: none of those that
        are kept whole is larger.
    """
    members = list(cells)
    linears = [p for p in structure.parameters if p.layer is not None and p.kind == "linear"]
    dtype = members[0].dtype
    found = [sum(p.numel for p in linears) * DTYPE_BYTES[dtype]]
    for cell in members:
        if cell.is_dense and cell.variant == DENSE:
            continue
        prunable = {p.name for p in structure.prunable(cell.pruning.targets)}
        density = 1 - float(cell.pruning.sparsity)
        form = FORMATS.get(cell.variant)
        total = 0
        for p in linears:
            rows, columns = p.shape
            kept = round(density * p.numel) if p.name in prunable else p.numel
            predicted = form.predicted_bytes(rows, columns, kept, dtype)
            total += p.numel * DTYPE_BYTES[dtype] if predicted is None else predicted
        found.append(total)
    return tuple(found)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WalkMemory:
    """What decides the peak of one walk.

    Parameters
    ----------
    structure, dtype
        The model, and the type of weights and activations.
    pruned
        Names of the weights that are pruned; scores and statistics are held for these alone.
    statistics
        Statistics that the methods of the walk need (``input_norm``, ``hessian``).
    hidden_tokens
        Tokens of all streams together whose hidden states are kept.
    window_tokens
        Tokens of the longest window.
    tracks
        Bytes of each stream's stored layers, see `kept_tracks`; empty where nothing is generated.
    outside_weights
        Weights of pruned embeddings and heads that all streams keep beside the dense ones.
    workspace_bytes_per_weight
        Copies of the largest matrix that selection and update work on, see `Method` and `REFIT_BYTES_PER_WEIGHT`.
    budget_bytes
        Memory that hidden states and kept weights may fill; None is unlimited.
    """

    structure: Structure
    dtype: str
    pruned: frozenset[str] = frozenset()
    statistics: tuple[str, ...] = ()
    hidden_tokens: int = 0
    window_tokens: int = 512
    tracks: tuple[int, ...] = ()
    outside_weights: int = 0
    workspace_bytes_per_weight: int = 0
    budget_bytes: int | None = None

    @property
    def peak_bytes(self) -> int:
        """Largest resident memory of the process."""
        kept, recalled = self.kept_bytes
        stages = (self.layer_bytes + kept, self.outside_bytes + recalled, self.generation_bytes + recalled)
        return INTERPRETER_BYTES + self.hidden_bytes + max(stages)

    @property
    def hidden_bytes(self) -> int:
        """Hidden states in memory."""
        size = self.hidden_tokens * self.structure.hidden * DTYPE_BYTES[self.dtype]
        return 0 if self.budget_bytes is not None and size > self.budget_bytes // 2 else size

    @property
    def kept_bytes(self) -> tuple[int, int]:
        """Weights kept for generation: during the walk, and while one track generates."""
        total = sum(self.tracks)
        if self.budget_bytes is None or total + self.hidden_bytes <= self.budget_bytes:
            return total, total
        # On disk; a track comes back to memory for its turn where it fits into half the budget.
        return 0, max((track for track in self.tracks if track <= self.budget_bytes // 2), default=0)

    @property
    def generation_bytes(self) -> int:
        """Keys and values of all prompts, embedding and head, and one stored layer as it is read and as it is used."""
        if not self.tracks:
            return 0
        size = DTYPE_BYTES[self.dtype]
        projections = ("k_proj.weight", "v_proj.weight")
        width = sum(p.shape[0] for p in self.structure.parameters if p.name.endswith(projections))
        # Where one matrix holds them with the queries there are as many of them; a score costs two products of two.
        width = width or self.structure.attention_flops_per_context_token // 2
        outside = sum(p.numel for p in self.structure.outside_layers if p.tied_to is None) * size
        return CACHED_TOKENS * width * size + outside + 2 * max(self.tracks) // max(self.structure.layers, 1)

    @property
    def layer_bytes(self) -> int:
        """One decoder layer, its twin, its stored copy, and the workspace of the largest pruned matrix."""
        size = DTYPE_BYTES[self.dtype]
        layers: dict[int, int] = {}
        largest = widest = 0
        for p in self.structure.parameters:
            if p.layer is None:
                continue
            layers[p.layer] = layers.get(p.layer, 0) + p.numel
            if p.name in self.pruned:
                largest, widest = max(largest, p.numel), max(widest, p.shape[1])
        layer = max(layers.values(), default=0)
        stored = max(self.tracks, default=0) // max(len(layers), 1) or layer * size
        bytes_ = layer * 2 * size + stored + largest * self.workspace_bytes_per_weight
        if "hessian" in self.statistics:
            bytes_ += HESSIAN_COPIES * widest * widest * DTYPE_BYTES["float64"]
        return int(bytes_)

    @property
    def outside_bytes(self) -> int:
        """Embedding and head with what was pruned of them, and the logits of one window of two streams, or pruning."""
        size = DTYPE_BYTES[self.dtype]
        outside = self.structure.outside_layers
        weights = sum(p.numel for p in outside if p.tied_to is None) * size + self.outside_weights * size
        logits = 2 * self.window_tokens * self.structure.vocab_size * size
        block = _BLOCK_COPIES * _BLOCK_POSITIONS * self.structure.vocab_size * DTYPE_BYTES["float64"]
        pruning = 0
        if self.outside_weights and self.statistics:
            pruning = max(p.numel for p in outside) * self.workspace_bytes_per_weight
            if "hessian" in self.statistics:
                pruning += HESSIAN_COPIES * self.structure.hidden**2 * DTYPE_BYTES["float64"]
        return weights + max(logits + block, pruning)

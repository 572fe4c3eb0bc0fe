"""Published one-shot pruning of one layer, restated plainly in float32: a baseline where the package is not to be had.

Both follow the public code line of thought by line of thought, its per-column sweep and its sorting included.
"""

from __future__ import annotations

import torch


def sparsegpt(weight: torch.Tensor, hessian: torch.Tensor, sparsity: float, block: int, damping: float) -> torch.Tensor:
    """SparseGPT with its Cholesky, inverse and second Cholesky, one column at a time."""
    w, h = weight.clone(), hessian.clone()
    columns = w.shape[1]
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(damping * h.diagonal().mean())
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part, inverse = w[:, start:stop].clone(), u[start:stop, start:stop]
        kept, errors = torch.zeros_like(part), torch.zeros_like(part)
        scores = part**2 / inverse.diagonal() ** 2
        mask = scores <= scores.flatten().sort().values[int(scores.numel() * sparsity)]
        for j in range(stop - start):
            column = part[:, j].clone()
            column[mask[:, j]] = 0
            kept[:, j] = column
            error = (part[:, j] - column) / inverse[j, j]
            part[:, j:] -= error[:, None] @ inverse[j, j:][None]
            errors[:, j] = error
        w[:, start:stop] = kept
        w[:, stop:] -= errors @ u[start:stop, stop:]
    return w


def wanda(weight: torch.Tensor, mean_squares: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Wanda with its stable sort of every row."""
    scores = weight.abs() * mean_squares.sqrt()
    order = scores.sort(dim=-1, stable=True).indices[:, : int(weight.shape[1] * sparsity)]
    pruned = weight.clone()
    pruned.scatter_(1, order, 0)
    return pruned

"""Published one-shot pruning algorithms, restated plainly column by column: what ours is held against.

Written from the papers and their public code's behaviour, with that code's conventions where the two differ from ours
(counts one too large, dead columns zeroed). Slow on purpose; float64 unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    """Hessian as SparseGPT scales it for one sequence: 2 X^T X."""
    return 2 * x.T @ x


def sparsegpt(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    sparsity: float,
    removed_of: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = 0.01,
    extra: int = 1,
) -> torch.Tensor:
    """SparseGPT; ``removed_of`` is (removed, group), the notation of its public code.

    ``extra`` is what its "at or below the k-th" rule removes beyond k; 0 gives the exact count.
    """
    w, h = weight.clone(), hessian.clone()
    rows, columns = w.shape
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(damping * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    u = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        mask = torch.zeros(rows, stop - start, dtype=torch.bool)
        if removed_of is None:
            scores = w[:, start:stop] ** 2 / u.diagonal()[start:stop] ** 2
            order = scores.flatten().sort(stable=True).indices
            mask.view(-1)[order[: int(scores.numel() * sparsity) + extra]] = True
        for j in range(start, stop):
            if removed_of is not None and (j - start) % removed_of[1] == 0:
                scores = w[:, j : j + removed_of[1]] ** 2 / u.diagonal()[j : j + removed_of[1]] ** 2
                lowest = scores.sort(dim=1, stable=True).indices[:, : removed_of[0]]
                mask.scatter_(1, j - start + lowest, True)
            kept = w[:, j].masked_fill(mask[:, j - start], 0)
            error = (w[:, j] - kept) / u[j, j]
            w[:, j] = kept
            w[:, j + 1 :] -= error[:, None] * u[j, j + 1 :]
    return w


def wanda(
    weight: torch.Tensor, inputs: list[torch.Tensor], sparsity: float, removed_of: tuple[int, int] | None = None
) -> torch.Tensor:
    """Wanda over a list of sequences; ``removed_of`` is (removed, group)."""
    norms = torch.stack([x.square().sum(0) for x in inputs]).mean(0).sqrt()
    scores = weight.abs() * norms
    pruned = weight.clone()
    if removed_of is None:
        order = scores.sort(dim=1, stable=True).indices[:, : int(weight.shape[1] * sparsity)]
        return pruned.scatter_(1, order, 0)
    for start in range(0, weight.shape[1], removed_of[1]):
        group = scores[:, start : start + removed_of[1]]
        order = group.sort(dim=1, stable=True).indices[:, : removed_of[0]]
        pruned.scatter_(1, start + order, 0)
    return pruned


def ria(weight: torch.Tensor, inputs: torch.Tensor, sparsity: float, exponent: float = 0.5) -> torch.Tensor:
    """RIA per output neuron."""
    size = weight.abs()
    scores = (size / size.sum(0) + size / size.sum(1, keepdim=True)) * inputs.norm(dim=0) ** exponent
    order = scores.sort(dim=1, stable=True).indices[:, : int(weight.shape[1] * sparsity)]
    return weight.clone().scatter_(1, order, 0)


def alps(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    keep: Callable[[torch.Tensor], torch.Tensor],
    rho: float = 0.1,
    iterations: int = 300,
    ridge: float = 0.01,
) -> torch.Tensor:
    """ALPS: ADMM on unit-norm columns whose penalty follows the support, then ten steps of conjugate gradients.

    ``keep`` maps out_features x in_features values to the mask of those that stay. Every inverse is a plain solve.
    Its public code restarts from the dense weights when the support moves too little at first, and only divides the
    penalty when it does not move at all; here it restarts in both cases.
    """
    h = hessian + ridge * hessian.diagonal().mean() * torch.eye(len(hessian)).to(hessian)
    norm = h.diagonal().sqrt()
    h = h / norm / norm[:, None]
    dense = (weight * norm).T
    eye = torch.eye(len(h)).to(h)

    def project(values: torch.Tensor) -> torch.Tensor:
        return torch.where(keep(values.T.abs()).T, values, 0)

    start = project(dense)
    b, d, v, support = dense, start, torch.zeros_like(dense), start != 0
    kept, started = int(support.sum()), False
    for iteration in range(1, iterations + 1):
        b = torch.linalg.solve(h + rho * eye, h @ dense - v + rho * d)
        d = project(b + v / rho)
        v = v + rho * (b - d)
        if iteration % 3:
            continue
        change = int(((d != 0) != support).sum())
        support = d != 0
        started = started or change / kept > 0.005
        if started and (not change or (iteration > 30 and change / kept < 3e-4)):
            break
        if started:
            rho *= 1.3 if change / kept > 0.1 else 1.2 if change / kept > 0.005 else 1.1
        else:
            rho /= 5
            b, d, v, support = dense, start, torch.zeros_like(dense), start != 0
    b = project(b)
    support = b != 0
    residual = torch.where(support, h @ (dense - b), 0)
    direction = residual
    for _ in range(10):
        image = h @ direction
        power = residual.square().sum(0)
        step = power / (direction * image).sum(0).clamp_min(1e-300)
        b = b + step * direction
        residual = torch.where(support, residual - step * image, 0)
        direction = residual + residual.square().sum(0) / power.clamp_min(1e-300) * direction
    return (b / norm[:, None]).T


def best_refit(weight: torch.Tensor, mask: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Least squares on the kept positions of every row, one dense solve a row."""
    refitted = torch.zeros_like(weight)
    for row in range(weight.shape[0]):
        kept = (~mask[row]).nonzero().view(-1)
        if kept.numel():
            right = (hessian @ weight[row])[kept]
            refitted[row, kept] = torch.linalg.solve(hessian[kept][:, kept], right)
    return refitted


def output_error(weight: torch.Tensor, pruned: torch.Tensor, hessian: torch.Tensor) -> float:
    """Squared error of the outputs over the calibration text."""
    lost = weight.double() - pruned.double()
    return float(((lost @ hessian.double()) * lost).sum())

"""Least squares over a layer's inputs: damping, the factor SparseGPT sweeps with, and fits on a fixed support.

Everything is a function of the Hessian X^T X (in_features x in_features, float64) and needs the inputs no more.
Its scale does not matter: damping is a share of its mean diagonal. Features that are zero in all of the calibration
text ("dead") get the mean diagonal as their own, so that every matrix here can be inverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from sparsehpc.core.errors import CellError

#: A failed Cholesky raises the damping by this factor ...
DAMPING_FACTOR: Final = 10.0
#: ... until it would exceed this share of the mean diagonal.
DAMPING_LIMIT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Factor:
    """Upper triangular R with R R^T = H + damping.

    Its inverse U is the upper Cholesky factor of the inverse Hessian that SparseGPT sweeps with, U^T U = (R R^T)^-1,
    and a diagonal block of U is the inverse of the same block of R: the whole of U is never needed.

    Parameters
    ----------
    upper
        R, float64.
    damping
        Share of the mean diagonal that was added.
    raised
        How often the damping had to be raised.
    dead
        Features without any input (bool, in_features).
    """

    upper: torch.Tensor
    damping: float
    raised: int
    dead: torch.Tensor

    def notes(self) -> dict[str, float]:
        """What a reader must know: nothing if all went as asked."""
        return {"damping": self.damping, "damping_raised": self.raised} if self.raised else {}


def prepare(hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Copy of a Hessian in which dead features stand alone, the dead features, and its mean diagonal.

    The mean runs over all features, dead ones included as zero; it is 1 where every feature is dead. SparseGPT's code
    includes them as 1, which is much or nothing, depending on the scale of the inputs; zero scales with them.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = float(diagonal.mean()) or 1.0
    ready = hessian.clone()
    ready.diagonal()[dead] = mean
    return ready, dead, mean


def factor(hessian: torch.Tensor, damping: float, name: str) -> Factor:
    """Factor a damped Hessian; where that fails, damping rises in steps and the result says so.

    With J the reversal of order and J H J = L L^T, R is J L J.

    Parameters
    ----------
    hessian
        X^T X, float64; not changed.
    damping
        Share of the mean diagonal to add to the diagonal.
    name
        Named in the error.

    Raises
    ------
    CellError
        If no damping up to `DAMPING_LIMIT` makes the matrix positive definite.
    """
    ready, dead, mean = prepare(hessian)
    ready = ready.flip(0, 1)
    base = ready.diagonal().clone()
    share, raised = damping, 0
    while share <= max(DAMPING_LIMIT, damping):
        ready.diagonal().copy_(base + share * mean)
        lower, failed = torch.linalg.cholesky_ex(ready)
        if not int(failed):
            return Factor(lower.flip(0, 1), share, raised, dead)
        share = share * DAMPING_FACTOR if share else 1e-4
        raised += 1
    raise CellError(f"the inputs of {name} have no usable Hessian: Cholesky fails up to a damping of {DAMPING_LIMIT:g}")


@dataclass(frozen=True, slots=True)
class Fit:
    """Solution of a fit on a fixed support.

    Parameters
    ----------
    solution
        in_features x out_features, zero outside the support.
    steps
        Conjugate-gradient steps taken.
    residual
        Largest residual of any output, relative to its right-hand side.
    """

    solution: torch.Tensor
    steps: int
    residual: float


def fit_on_support(
    gram: torch.Tensor, dense: torch.Tensor, support: torch.Tensor, start: torch.Tensor, steps: int, tolerance: float
) -> Fit:
    """Minimise (B - B0)^T G (B - B0) over B that is zero outside a support, every output by itself.

    Conjugate gradients on all outputs at once. With a unit diagonal of G this is Jacobi-preconditioned.

    Parameters
    ----------
    gram
        G, in_features x in_features, positive definite.
    dense
        B0, in_features x out_features.
    support
        True where B may differ from zero, shape of ``dense``.
    start
        First guess; used inside the support only.
    steps
        Steps at most.
    tolerance
        Stops once every output's residual is below this share of its right-hand side.
    """
    kept = support.to(gram.dtype)
    solution = start * kept
    target = (gram @ dense) * kept
    scale = target.norm(dim=0).clamp_min(torch.finfo(gram.dtype).tiny)
    residual = target - (gram @ solution) * kept
    direction = residual.clone()
    power = residual.square().sum(0)
    step = 0
    while step < steps and float((power.sqrt() / scale).max()) > tolerance:
        image = (gram @ direction) * kept
        curvature = (direction * image).sum(0)
        # An output that is solved already has no direction left.
        length = torch.where(curvature > 0, power / curvature, torch.zeros_like(power))
        solution += length * direction
        residual -= length * image
        new = residual.square().sum(0)
        direction = residual + torch.where(power > 0, new / power, torch.zeros_like(power)) * direction
        power = new
        step += 1
    return Fit(solution, step, float((power.sqrt() / scale).max()) if power.numel() else 0.0)


def relative_error(weight: torch.Tensor, pruned: torch.Tensor, hessian: torch.Tensor) -> float:
    """Squared error of a layer's outputs relative to its dense outputs' squares, both over the calibration text."""
    dense = weight.detach().double()
    lost = dense - pruned.detach().double()
    total = float(((dense @ hessian) * dense).sum())
    return float(((lost @ hessian) * lost).sum()) / total if total else 0.0

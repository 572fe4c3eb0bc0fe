"""Refit: the kept weights of any mask, re-optimised against the dense layer's outputs.

For every output row w with kept positions S the refit solves min |X (w - w0)|^2 + lambda |w - w0|^2 over w that is
zero outside S: least squares over the calibration text, drawn towards the dense weights by a small ridge, because
text of fewer tokens than in_features leaves directions without any input.

That a refit after the mask closes most of the distance between mask criteria is found in arXiv:2510.14444.
"""

from __future__ import annotations

from typing import Final

import torch

from sparsehpc.pruning.least_squares import fit_on_support, prepare
from sparsehpc.pruning.rounding import rounded
from sparsehpc.pruning.types import Pruned

#: Ridge as a share of the Hessian's mean diagonal, the value the calibrated methods damp with.
RIDGE: Final = 0.01
#: A residual of 1e-6 of the right-hand side moves a weight by less than a float32 rounding of the largest ones.
TOLERANCE: Final = 1e-6
STEPS: Final = 500


def refit(weight: torch.Tensor, pruned: Pruned, hessian: torch.Tensor, name: str) -> Pruned:
    """Re-optimise the kept weights of a pruned weight; the mask stays as it is.

    Parameters
    ----------
    weight
        Dense weight, out_features x in_features.
    pruned
        What a method made of it; its zeros are the mask.
    hessian
        X^T X of the layer's inputs, float64.
    name
        Named in errors.

    Returns
    -------
    Pruned
        Weight of the same dtype, and the notes with ``refit_steps`` and ``refit_residual``.
    """
    kept = pruned.weight != 0
    if bool((pruned.weight == weight).all()):  # nothing was removed, so nothing needs to make up for it
        return pruned
    ready, _, mean = prepare(hessian)
    ready.diagonal().add_(RIDGE * mean)
    scale = ready.diagonal().sqrt()
    gram = ready / scale[:, None] / scale
    dense = weight.detach().double().T * scale[:, None]
    start = pruned.weight.double().T * scale[:, None]
    fit = fit_on_support(gram, dense, kept.T, start, STEPS, TOLERANCE)
    refitted = rounded((fit.solution / scale[:, None]).T.contiguous(), weight.dtype, f"the refit of {name}")
    notes = {**pruned.notes, "refit_steps": fit.steps, "refit_residual": fit.residual}
    return Pruned(refitted.masked_fill_(~kept, 0), notes)

"""Per-position figures of a window's logits, computed once; every behaviour metric reads them.

Softmax sums are taken in float64, a block of positions at a time, so that a window of 2,048 tokens and a vocabulary
of 50,000 needs megabytes, not gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Positions whose logits are held in float64 at once: few, so that a block of a large vocabulary stays in the cache.
BLOCK_POSITIONS = 8
PRECISION = torch.float64


@dataclass(frozen=True, slots=True)
class DensePositions:
    """What all cells need of the dense model's logits.

    Parameters
    ----------
    choice
        Most likely token by position (ties: lowest id), T.
    log_normalizer
        Log of the softmax sum by position, float64, T.
    margin
        Dense top-1 minus top-2 logit by position, float64, T.
    nll
        Negative log-likelihood of the following token, float64 nats, T - 1.
    """

    choice: torch.Tensor
    log_normalizer: torch.Tensor
    margin: torch.Tensor
    nll: torch.Tensor


@dataclass(frozen=True, slots=True)
class Positions:
    """Figures of one cell's logits beside the dense model's, by position.

    Parameters
    ----------
    choice
        Most likely token (ties: lowest id), T.
    kl
        KL(dense || cell) in nats, float64, T.
    rank
        Rank that the cell gives the dense model's choice, 1 is best, T.
    nll
        Negative log-likelihood of the following token, float64 nats, T - 1.
    """

    choice: torch.Tensor
    kl: torch.Tensor
    rank: torch.Tensor
    nll: torch.Tensor


def _blocks(logits: torch.Tensor) -> list[slice]:
    return [slice(start, start + BLOCK_POSITIONS) for start in range(0, logits.shape[0], BLOCK_POSITIONS)]


def dense_positions(logits: torch.Tensor, ids: torch.Tensor) -> DensePositions:
    """Figures of the dense logits (T x vocabulary) for token ids (T)."""
    normalizers, margins = [], []
    for block in _blocks(logits):
        exact = logits[block].to(PRECISION)
        normalizers.append(torch.logsumexp(exact, dim=-1))
        top = torch.topk(exact, 2, dim=-1).values
        margins.append(top[:, 0] - top[:, 1])
    log_normalizer = torch.cat(normalizers)
    return DensePositions(
        choice=logits.argmax(dim=-1),
        log_normalizer=log_normalizer,
        margin=torch.cat(margins),
        nll=_nll(logits, log_normalizer, ids),
    )


def positions(logits: torch.Tensor, ids: torch.Tensor, dense_logits: torch.Tensor, dense: DensePositions) -> Positions:
    """Figures of a cell's logits (T x vocabulary) beside the dense model's for token ids (T)."""
    normalizers, divergences, ranks = [], [], []
    for block in _blocks(logits):
        exact, exact_dense = logits[block].to(PRECISION), dense_logits[block].to(PRECISION)
        normalizer = torch.logsumexp(exact, dim=-1)
        normalizers.append(normalizer)
        divergences.append(_divergence(exact_dense, dense.log_normalizer[block], exact, normalizer))
        ranks.append(_ranks(logits[block], dense.choice[block, None]))
    log_normalizer = torch.cat(normalizers)
    return Positions(
        choice=logits.argmax(dim=-1),
        kl=torch.cat(divergences),
        rank=torch.cat(ranks),
        nll=_nll(logits, log_normalizer, ids),
    )


def _divergence(
    dense: torch.Tensor, dense_normalizer: torch.Tensor, cell: torch.Tensor, normalizer: torch.Tensor
) -> torch.Tensor:
    """KL(dense || cell) by position: the mean difference of the logits under dense, less that of the normalizers."""
    probability = (dense - dense_normalizer[:, None]).exp_()
    difference = dense - cell
    if not bool(torch.isfinite(difference).all()):
        # A probability of zero contributes nothing, also where a logit is minus infinity.
        difference = torch.where(probability > 0, difference, 0.0)
    mean_difference: torch.Tensor = torch.linalg.vecdot(probability, difference)
    return mean_difference - (dense_normalizer - normalizer)


def _ranks(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Rank of one token by position; of equal logits the lower id comes first."""
    level = logits.gather(-1, chosen)
    rank = 1 + (logits > level).sum(dim=-1)
    equal = logits == level
    if int(equal.sum()) > len(logits):
        columns = torch.arange(logits.shape[-1], device=logits.device)
        rank += (equal & (columns < chosen)).sum(dim=-1)
    return rank


def _nll(logits: torch.Tensor, log_normalizer: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    following = ids[1:, None]
    return log_normalizer[:-1] - logits[:-1].gather(-1, following)[:, 0].to(PRECISION)

"""How long cells will take: from what earlier runs took where there are some, otherwise from parameters and tokens."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

#: Interpreter, torch, checks: paid once a job.
STARTUP_S = 20.0
#: Sustained arithmetic of one core and of one GPU on these models, deliberately low: a job that is too short is
#: started again, one that is too long only waits a little longer in the queue.
_FLOPS_PER_S = {"cpu": 2e10, "cuda": 4e12}
#: Times a dense product, for the storage formats that no vendor library multiplies.
_SLOWER_FORMAT = 4.0
_DENSE_LIKE = frozenset({"dense", "masked"})
#: Seconds a weight: choosing by magnitude, and updating with second-order information.
_SELECT_S = 2e-8
_SOLVE_S = 2e-6
_CALIBRATED_S = 5e-8
#: Decoding: bytes of weights a second from memory, what every token costs besides, storing and checking a weight.
_STREAM_BYTES_PER_S = 5e9
_TOKEN_S = 0.01
_STORE_S = 5e-8


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What decides how long a cell takes.

    Parameters
    ----------
    model, dtype, device, method, variant
        As in the plan.
    cores
        CPU cores of the job.
    parameters
        Of the model.
    evaluation_tokens, calibration_tokens
        Tokens that go through the model.
    calibration_passes
        How often the calibration tokens do.
    decoded_tokens
        Tokens that are decoded one by one, where the cell is timed; it evaluates no text then.
    """

    model: str
    dtype: str
    device: str
    method: str
    variant: str
    cores: int
    parameters: int
    evaluation_tokens: int
    calibration_tokens: int
    calibration_passes: int = 2
    decoded_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of one cell, by what its neighbours in a job share.

    Parameters
    ----------
    walk_s
        Reading the model and the dense stream: once a job.
    prune_s
        Statistics, selection, update: once a combination.
    cell_s
        Storing and evaluating this variant.
    measured
        Whether it comes from earlier runs of the same model, method and variant.
    """

    walk_s: float
    prune_s: float
    cell_s: float
    measured: bool


class CostModel:
    """Estimates from earlier cells.

    Parameters
    ----------
    history
        Rows of ``costs`` tables: keys, ``evaluation_tokens``, and the columns ``load_s, dense_s, prune_s, encode_s,
        evaluate_s``.
    """

    def __init__(self, history: Iterable[Mapping[str, Any]] = ()) -> None:
        walk: dict[Hashable, list[float]] = {}
        prune: dict[Hashable, list[float]] = {}
        cell: dict[Hashable, list[float]] = {}
        for row in history:
            base = (row["model"], row["dtype"], row["device"])
            tokens = max(1, int(row["evaluation_tokens"]))
            walk.setdefault(base, []).append((row["load_s"] + row["dense_s"]) / tokens)
            prune.setdefault((*base, row["method"]), []).append(row["prune_s"])
            # The dense cell's evaluation is the dense stream, which the walk holds already.
            own = 0.0 if row["variant"] == "dense" else row["evaluate_s"]
            cell.setdefault((*base, row["variant"]), []).append((row["encode_s"] + own) / tokens)
        # Upper quartile: what was slow once will be slow again on some node.
        self._walk, self._prune, self._cell = ({k: _upper(v) for k, v in t.items()} for t in (walk, prune, cell))

    def estimate(self, work: Work) -> Estimate:
        """Estimate one cell."""
        guess = _by_size(work)
        if work.decoded_tokens:
            return _timing(work, guess)
        base = (work.model, work.dtype, work.device)
        walk, cell = self._walk.get(base), self._cell.get((*base, work.variant))
        prune = self._prune.get((*base, work.method))
        if walk is None or prune is None or cell is None:
            return guess
        tokens = work.evaluation_tokens
        return Estimate(walk_s=walk * tokens, prune_s=prune, cell_s=cell * tokens, measured=True)


def job_seconds(cells: Iterable[tuple[Hashable, Estimate]]) -> float:
    """Seconds of a job of cells that share a pass over the model.

    Parameters
    ----------
    cells
        Of each cell what it shares its pruning by, and its estimate.
    """
    walk, own, prunings = 0.0, 0.0, dict[Hashable, float]()
    for pruning, estimate in cells:
        walk = max(walk, estimate.walk_s)
        own += estimate.cell_s
        prunings[pruning] = max(prunings.get(pruning, 0.0), estimate.prune_s)
    return STARTUP_S + walk + own + sum(prunings.values())


def _by_size(work: Work) -> Estimate:
    speed = _FLOPS_PER_S[work.device] * (work.cores if work.device == "cpu" else 1)
    forward_s = 2.0 * work.parameters / speed
    dense_s = forward_s * work.evaluation_tokens
    weights = float(work.parameters)
    if work.method == "none":
        prune_s = 0.0
    elif work.calibration_tokens:
        prune_s = (
            work.calibration_passes * forward_s * work.calibration_tokens
            + weights * _CALIBRATED_S
            + weights * _SOLVE_S / max(1, work.cores)
        )
    else:
        prune_s = weights * _SELECT_S
    cell_s = 0.0 if work.variant == "dense" else dense_s * (1.0 if work.variant in _DENSE_LIKE else _SLOWER_FORMAT)
    # Reading four bytes a parameter at a modest 100 MB/s of a shared file system.
    return Estimate(walk_s=weights * 4 / 1e8 + dense_s, prune_s=prune_s, cell_s=cell_s, measured=False)


def _timing(work: Work, guess: Estimate) -> Estimate:
    """A timed cell: the weights are stored, checked, and read once a token; pruning as for any cell."""
    weights_bytes = 4.0 * work.parameters
    token_s = weights_bytes / _STREAM_BYTES_PER_S + _TOKEN_S
    return Estimate(
        walk_s=weights_bytes / 1e8,
        prune_s=guess.prune_s,
        cell_s=work.parameters * _STORE_S + work.decoded_tokens * token_s,
        measured=False,
    )


def _upper(values: list[float]) -> float:
    return max(values) if len(values) < 4 else statistics.quantiles(values, n=4)[2]

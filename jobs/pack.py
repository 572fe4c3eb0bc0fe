"""Cells into jobs: what one process computes together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsehpc.core.spec import Cell

#: Cells that share one pass over a model where nobody says how many: beyond that an interruption costs more than
#: sharing saves.
CELLS_A_JOB = 20


def by_walk(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """All cells that can share one pass over a model, one job each; order is kept."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.walk_key, []).append(cell)
    return [tuple(group) for group in groups.values()]


def packs(cells: Sequence[Cell], size: int) -> list[tuple[Cell, ...]]:
    """Jobs of at most ``size`` cells that share a pass over the model.

    Cells of one combination stay together, since they share the pruning; only a combination with more cells than
    ``size`` is split. Order is kept. Cells that are timed stay together whatever their number: their figures compare.
    """
    if size < 1:
        raise ValueError(f"jobs of {size} cells")
    jobs: list[tuple[Cell, ...]] = []
    for group in by_walk(cells):
        if group[0].latency is not None:
            jobs.append(group)
            continue
        job: list[Cell] = []
        for combination in combinations(group):
            for start in range(0, len(combination), size):
                part = combination[start : start + size]
                if len(job) + len(part) > size:
                    jobs.append(tuple(job))
                    job = []
                job += part
        if job:
            jobs.append(tuple(job))
    return jobs


def combinations(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that share their pruning, together; order is kept."""
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.pruning, []).append(cell)
    return list(groups.values())

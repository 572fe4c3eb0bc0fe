"""Memory that the walks of a plan will take, from configs alone, beside what their resource class asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from jobs.pack import CELLS_A_JOB, packs
from jobs.plan import Plan
from sparsehpc.core.spec import DTYPE_BYTES, Cell
from sparsehpc.models.memory import REFIT_BYTES_PER_WEIGHT, WalkMemory, kept_tracks
from sparsehpc.models.snapshot import structure_of
from sparsehpc.models.structure import Structure
from sparsehpc.pruning.base import METHODS

GIB = 1 << 30
#: Part of a job's memory that hidden states and weights may fill; see `jobs.cell.MEMORY_SHARE`.
_SHARE = 0.6
#: A job that times decoding holds the dense model, the pruned weights and one variant, stacks fused weights, and reads
#: as many bytes for comparison: copies of the model, and what the process takes besides.
_WHOLE_MODELS = 5
_PROCESS_BYTES = 400 << 20


def walk_memory(cells: Sequence[Cell], structure: Structure, memory_gib: float) -> WalkMemory:
    """What decides the peak of one job of these cells.

    Parameters
    ----------
    cells
        Cells that share a walk.
    structure
        Their model.
    memory_gib
        What the job asks for.
    """
    evaluation = cells[0].evaluation
    prunings = {cell.pruning for cell in cells}
    needs: set[str] = set()
    calibration_tokens = workspace = 0
    for pruning in prunings:
        if not pruning.is_dense:
            method = METHODS.get(pruning.method)
            needs.update(method.statistics)
            workspace = max(workspace, method.workspace_bytes_per_weight)
        if pruning.refit:
            needs.add("hessian")
            workspace = max(workspace, REFIT_BYTES_PER_WEIGHT)
        if pruning.calibration is not None:
            calibration_tokens += pruning.calibration.windows * pruning.calibration.window_tokens
    streams = 1 + len(cells) + len(prunings)
    return WalkMemory(
        structure=structure,
        dtype=cells[0].dtype,
        pruned=frozenset(p.name for pruning in prunings for p in structure.prunable(pruning.targets)),
        statistics=tuple(sorted(needs)),
        hidden_tokens=streams * evaluation.windows * evaluation.window_tokens + calibration_tokens,
        window_tokens=evaluation.window_tokens,
        tracks=kept_tracks(structure, cells),
        outside_weights=_outside_weights(cells, structure),
        workspace_bytes_per_weight=workspace,
        budget_bytes=int(memory_gib * GIB * _SHARE),
    )


def _outside_weights(cells: Sequence[Cell], structure: Structure) -> int:
    """Weights of pruned embeddings, one a combination, and of pruned heads, one a stream."""
    total = 0
    for pruning in {cell.pruning for cell in cells if not cell.pruning.is_dense}:
        variants = {cell.variant for cell in cells if cell.pruning == pruning} | {"masked"}
        for p in structure.prunable(pruning.targets):
            if p.layer is None:
                total += p.numel * (1 if p.kind == "embedding" else len(variants))
    return total


def predicted_gib(plan: Plan) -> dict[tuple[str, str, str], float]:
    """Peak of the largest job that walks a model, or times its cells, by class, model and dtype, in GiB."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in plan.cells:
        if cell.latency is None:
            groups.setdefault((cell.resource, cell.model, cell.dtype), []).append(cell)
    structures: dict[tuple[str, str | None], Structure] = {}
    found = {}
    for key, cells in groups.items():
        model = cells[0].model, cells[0].revision
        if model not in structures:
            with contextlib.chdir(plan.study.path.parent):
                structures[model] = structure_of(*model)
        asked = plan.study.resources[key[0]].memory_gib
        jobs = packs(cells, CELLS_A_JOB)
        found[key] = max(walk_memory(job, structures[model], asked).peak_bytes for job in jobs) / GIB
        if plan.study.latency is not None and cells[0].device == "cpu":
            whole = _WHOLE_MODELS * structures[model].params_total * DTYPE_BYTES[key[2]] + _PROCESS_BYTES
            found[key] = max(found[key], whole / GIB)
    return found

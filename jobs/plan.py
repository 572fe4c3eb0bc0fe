"""From a study to its cells: ordered, none twice, and what cannot be is listed with the reason.

Order: models as written; of each the dense cell first, then one combination (`Pruning`) after the other with its
variants side by side, so that neighbours share as much work as possible. Where a study times decoding, every cell comes
a second time in the same order, after all cells that measure behaviour.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from jobs.spec import GridTable, ModelTable, Study
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.spec import DENSE, Calibration, Cell, Pruning, Scalar, decimal_text
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.snapshot import structure_of
from sparsehpc.pruning.base import METHODS, canonical_options
from sparsehpc.pruning.patterns import parse_pattern

if TYPE_CHECKING:
    from sparsehpc.models.structure import Structure

#: Places of a sparsity that a pattern dictates and no decimal can say exactly (keep 1 of 3).
_PLACES = Decimal("1e-12")
_SHOWN = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """Combinations that cannot be.

    Parameters
    ----------
    model, method, pattern, variant
        Which; an empty variant stands for all of them.
    reason
        Why not.
    cells
        How many cells this left out.
    """

    model: str
    method: str
    pattern: str
    variant: str
    reason: str
    cells: int


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Every cell of a study in order, and what was left out."""

    study: Study
    cells: tuple[Cell, ...]
    dropped: tuple[Dropped, ...]


def make_plan(study: Study) -> Plan:
    """Plan a study.

    Parameters
    ----------
    study
        A checked study.

    Raises
    ------
    UserErrors
        Where cells are there twice, targets or windows do not suit a model, a config cannot be found, or none of the
        combinations can be.
    """
    problems: list[str] = []
    cells: list[Cell] = []
    dropped: Counter[Dropped] = Counter()
    for number, model in enumerate(study.models, 1):
        try:
            with contextlib.chdir(study.path.parent):
                structure = structure_of(model.id, model.revision)
        except UserError as error:
            problems.append(f"models[{number}]: {error}")
            continue
        problems += _unsuitable(study, model, structure, f"models[{number}]")
        cells += _Planner(study, model, structure, dropped, problems).cells()
    problems += _duplicates(cells)
    if dropped and not problems and all(cell.pruning.is_dense for cell in cells):
        problems += [
            f"nothing is left to prune: {entry.method} {entry.pattern} of {entry.model}: {entry.reason}"
            for entry in dropped
        ]
    cells += _timed(study, cells, dropped)
    if problems:
        raise UserErrors(f"study file {study.path}", problems)
    counted = tuple(dataclasses.replace(entry, cells=count) for entry, count in dropped.items())
    return Plan(study=study, cells=tuple(cells), dropped=counted)


def _timed(study: Study, cells: Sequence[Cell], dropped: Counter[Dropped]) -> Iterator[Cell]:
    """Cells again, to be timed: of several calibration seeds the first, since zeros elsewhere take no other time."""
    if study.latency is None:
        return
    seen: set[tuple[object, ...]] = set()
    for cell in list(cells):
        p = cell.pruning
        drawn = None if p.calibration is None else dataclasses.replace(p.calibration, seed=0)
        alike = (cell.walk_key, cell.variant, dataclasses.replace(p, calibration=drawn))
        if cell.device != "cpu":
            dropped[Dropped(cell.model, p.method, p.pattern, cell.variant, "decoding is timed on CPUs only", 0)] += 1
        elif alike not in seen:
            seen.add(alike)
            yield dataclasses.replace(cell, latency=study.latency.of(study.resources[cell.resource].cpus))


class _Planner:
    """Cells of one model."""

    def __init__(
        self,
        study: Study,
        model: ModelTable,
        structure: Structure,
        dropped: Counter[Dropped],
        problems: list[str],
    ) -> None:
        self.study, self.model, self.structure = study, model, structure
        self.dropped, self.problems = dropped, problems
        self.shapes = {
            targets: tuple(structure.prunable(targets))
            for targets in {grid.targets for grid in study.grids}
            if not self._missing_targets(targets)
        }
        self._storable: dict[tuple[str, str, tuple[str, ...]], str | None] = {}

    def cells(self) -> list[Cell]:
        """Dense first, then every combination with its variants."""
        dense = Pruning(seed=self.study.study.seed)
        combinations: dict[Pruning, list[str]] = {dense: [DENSE]}
        for number, grid in enumerate(self.study.grids, 1):
            if grid.targets not in self.shapes:
                continue
            added: dict[Pruning, list[str]] = {}
            for pruning in self._prunings(grid):
                added.setdefault(pruning, self._variants(grid, pruning))
            for pruning, variants in added.items():
                present = combinations.setdefault(pruning, [])
                for variant in variants:
                    if variant in present:
                        self._twice(number, pruning, variant)
                    else:
                        present.append(variant)
            for variant in grid.variants:
                if FORMATS.get(variant).reference and variant not in combinations[dense]:
                    combinations[dense].append(variant)
        common = {
            "model": self.model.id,
            "revision": self.model.revision,
            "dtype": self.model.dtype,
            "device": self.study.resources[self.model.resource].device,
            "resource": self.model.resource,
            "evaluation": self.study.evaluation.cut(),
        }
        return [
            Cell(**common, pruning=pruning, variant=variant)  # type: ignore[arg-type]
            for pruning, variants in combinations.items()
            for variant in variants
        ]

    def _prunings(self, grid: GridTable) -> Iterator[Pruning]:
        """Every possible combination of one grid, variants aside."""
        for name, pattern, allocation, refit, true_sequential in itertools.product(
            grid.methods, grid.patterns, grid.allocation, grid.refit, grid.true_sequential
        ):
            method, fixed = METHODS.get(name), parse_pattern(pattern).fixed_sparsity
            sparsities = grid.sparsities if fixed is None else (_rounded(fixed),)
            draws: tuple[Calibration | None, ...] = (None,)
            if method.needs_calibration(allocation, refit) and self.study.calibration is not None:
                draws = self.study.calibration.draws()
            combinations = list(itertools.product(_options(name, grid.options), sparsities, draws))
            made = [
                Pruning(
                    method=name,
                    options=options,
                    pattern=pattern,
                    sparsity=decimal_text(sparsity),
                    allocation=method.canonical_allocation(allocation),
                    targets=grid.targets,
                    refit=refit,
                    true_sequential=true_sequential,
                    calibration=calibration,
                    seed=self.study.study.seed,
                )
                for options, sparsity, calibration in combinations
            ]
            reason = None
            if pattern not in method.patterns:
                reason = f"{name} cannot make pattern {pattern}; it makes {', '.join(method.patterns)}"
            elif allocation not in method.allocations:
                reason = f"{name} has no allocation {allocation!r}; it has {', '.join(method.allocations)}"
            elif refit and not method.refits:
                reason = f"{name} has no refit"
            for pruning in made:
                why = reason or method.unsupported(pruning, self.shapes[grid.targets])
                if why is None:
                    yield pruning
                else:
                    self._drop(pruning, "", why, len(_storing(grid)))

    def _variants(self, grid: GridTable, pruning: Pruning) -> list[str]:
        """Variants of a grid that can store a combination."""
        possible = []
        for variant in _storing(grid):
            key = (variant, pruning.pattern, pruning.targets)
            if key not in self._storable:
                self._storable[key] = self._unstorable(variant, pruning)
            reason = self._storable[key]
            if reason is None:
                possible.append(variant)
            else:
                self._drop(pruning, variant, reason, 1)
        return possible

    def _unstorable(self, variant: str, pruning: Pruning) -> str | None:
        layout = FORMATS.get(variant)
        if (reason := layout.unsupported_on(self.study.resources[self.model.resource].device)) is not None:
            return reason
        for parameter in self.shapes[pruning.targets]:
            rows, columns = parameter.shape
            reason = layout.unsupported(rows, columns, self.model.dtype, pruning.pattern)
            if reason is not None:
                return f"{parameter.name}: {reason}"
        return None

    def _drop(self, pruning: Pruning, variant: str, reason: str, cells: int) -> None:
        self.dropped[Dropped(self.model.id, pruning.method, pruning.pattern, variant, reason, 0)] += cells

    def _twice(self, grid: int, pruning: Pruning, variant: str) -> None:
        label = f"{pruning.method} {pruning.pattern} {pruning.sparsity} {variant}"
        problem = f"grid[{grid}]: the cell {label} of {self.model.id} is already planned by another [[grid]] table"
        if problem not in self.problems:
            self.problems.append(problem)

    def _missing_targets(self, targets: tuple[str, ...]) -> bool:
        try:
            self.structure.prunable(targets)
        except UserError as error:
            self.problems.append(f"grid.targets for {self.model.id}: {error.message}")
            return True
        return False


def _storing(grid: GridTable) -> tuple[str, ...]:
    """Variants of a grid that store pruned weights; the dense ones are planned once a model."""
    return tuple(name for name in grid.variants if name != DENSE and not FORMATS.get(name).reference)


def _options(method: str, axes: Mapping[str, tuple[Scalar, ...]]) -> list[tuple[tuple[str, Scalar], ...]]:
    """Every combination of a grid's options that this method has."""
    known = {field.name for field in dataclasses.fields(METHODS.get(method).options_type)}
    own = {name: values for name, values in axes.items() if name in known}
    return [
        canonical_options(method, dict(zip(own, values, strict=True))) for values in itertools.product(*own.values())
    ]


def _rounded(sparsity: Decimal) -> Decimal:
    return sparsity if sparsity == sparsity.quantize(_PLACES) else sparsity.quantize(_PLACES)


def _unsuitable(study: Study, model: ModelTable, structure: Structure, place: str) -> list[str]:
    """Windows that the model cannot read."""
    found = []
    for key, table in (("evaluation", study.evaluation), ("calibration", study.calibration)):
        if table is not None and table.window_tokens > structure.max_positions:
            found.append(
                f"{key}.window_tokens is {table.window_tokens}; legal: at most {structure.max_positions}, "
                f"which is what {place} {model.id} reads"
            )
    latency = study.latency
    if latency is not None and latency.prompt_tokens + latency.new_tokens > structure.max_positions:
        found.append(
            f"latency.prompt_tokens and new_tokens are {latency.prompt_tokens} and {latency.new_tokens}; legal: "
            f"together at most {structure.max_positions}, which is what {place} {model.id} reads"
        )
    return found


def _duplicates(cells: Iterable[Cell]) -> list[str]:
    """Cells that are planned twice: the same model, or the same entry of an axis written in two ways."""
    # As good as the ids (of all that makes up an id only the evaluation is left out, which is one for all), and faster.
    seen: set[tuple[object, ...]] = set()
    twice = []
    for cell in cells:
        identity = (cell.model, cell.revision, cell.dtype, cell.device, cell.variant, cell.pruning)
        if identity in seen:
            twice.append(cell.label())
        seen.add(identity)
    shown = [f"the cell {label} is planned twice; take one of the entries out" for label in twice[:_SHOWN]]
    if len(twice) > _SHOWN:
        shown.append(f"{len(twice) - _SHOWN} more cells are planned twice")
    return shown

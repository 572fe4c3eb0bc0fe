"""One model pruned and packed without a study, and a packed one written plainly."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sparsehpc.core.errors import UserError, UserErrors, unknown
from sparsehpc.core.spec import DTYPES, Calibration, Pruning, Scalar, decimal_text
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.snapshot import is_prepared, open_snapshot
from sparsehpc.models.sources import offline_preparable, prepare
from sparsehpc.pruning.base import METHODS, canonical_options
from sparsehpc.pruning.patterns import PATTERNS, parse_pattern
from sparsehpc.text.base import corpus_problem

if TYPE_CHECKING:
    from sparsehpc.models.snapshot import Snapshot

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What ``sparsehpc prune`` is asked for, as it was written.

    Parameters
    ----------
    model, revision, dtype
        As in a study.
    method, options, pattern, sparsity, allocation, targets, refit, true_sequential, seed
        As in a study's grid; an empty sparsity stands for the one that the pattern dictates.
    variant
        Storage format of the pruned weights.
    calibration
        Text for methods that learn from one; others do not read it.
    """

    model: str
    revision: str | None = None
    dtype: str = "float32"
    method: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pattern: str = "unstructured"
    sparsity: str = ""
    allocation: str = "default"
    targets: Sequence[str] = ("attention", "mlp")
    refit: bool = False
    true_sequential: bool = False
    seed: int = 0
    variant: str
    calibration: Calibration

    def pruning(self) -> Pruning:
        """The same, checked; every problem at once in `UserErrors`."""
        problems: list[str] = []

        def legal(kind: str, name: str, names: Sequence[str]) -> bool:
            if name not in names:
                problems.append(unknown(kind, name, names))
            return name in names

        legal("dtype", self.dtype, DTYPES)
        legal("format", self.variant, FORMATS.names())
        method = METHODS.get(self.method) if legal("method", self.method, METHODS.names()) else None
        known_pattern = legal("pattern", self.pattern, list(PATTERNS))
        sparsity = self._sparsity(problems) if known_pattern else Decimal(0)
        if problem := corpus_problem(self.calibration.corpus):
            problems.append(f"calibration: {problem}")
        options: tuple[tuple[str, Scalar], ...] = ()
        if method is not None:
            if known_pattern and self.pattern not in method.patterns:
                problems.append(f"{self.method} cannot make pattern {self.pattern}; legal: {_list(method.patterns)}")
            if self.allocation not in method.allocations:
                problems.append(f"{self.method} has no allocation {self.allocation!r}; {_list(method.allocations)}")
            if self.refit and not method.refits:
                problems.append(f"{self.method} has no refit")
            options = _collect(problems, lambda: canonical_options(self.method, _typed(self.options)), ())
        if problems or method is None:
            raise UserErrors("sparsehpc prune", problems, "sparsehpc ls lists methods, formats and corpora")
        calibrates = method.needs_calibration(self.allocation, self.refit)
        return Pruning(
            method=self.method,
            options=options,
            pattern=self.pattern,
            sparsity=decimal_text(sparsity),
            allocation=method.canonical_allocation(self.allocation),
            targets=tuple(self.targets),
            refit=self.refit,
            true_sequential=self.true_sequential,
            calibration=self.calibration if calibrates else None,
            seed=self.seed,
        )

    def _sparsity(self, problems: list[str]) -> Decimal:
        fixed = parse_pattern(self.pattern).fixed_sparsity
        if not self.sparsity:
            if fixed is None:
                problems.append("--sparsity is missing: the fraction of weights that go, for example --sparsity 0.5")
            return fixed or Decimal(0)
        try:
            sparsity = Decimal(self.sparsity)
        except InvalidOperation:
            sparsity = Decimal(-1)
        if not sparsity.is_finite() or not 0 <= sparsity <= 1:
            problems.append(f"sparsity {self.sparsity!r} is no number from 0 to 1, for example 0.5 for 50 %")
        elif fixed is not None and sparsity != fixed:
            problems.append(f"pattern {self.pattern} fixes the sparsity at {fixed}; leave --sparsity out")
        return sparsity


def prune(request: Request, folder: Path, say: Callable[[str], object]) -> dict[str, Any]:
    """Prune and write a packed model; returns its manifest.

    Parameters
    ----------
    request
        What to do.
    folder
        Where to; nothing is overwritten.
    say
        Called with lines of text.
    """
    pruning = request.pruning()
    snapshot = _snapshot(request, say)
    from sparsehpc.pretrained import compress

    return compress(snapshot, pruning, request.variant, folder, dtype=request.dtype, progress=Lines(say))


@dataclasses.dataclass(frozen=True, slots=True)
class Plain:
    """What ``sparsehpc densify`` wrote.

    Parameters
    ----------
    manifest
        That of the packed model.
    params_before, params_after
        Weights of the packed model and of the plain one.
    smaller
        Keys of config.json that became smaller, with their values before and after.
    stayed
        Why more did not.
    """

    manifest: Mapping[str, Any]
    params_before: int
    params_after: int
    smaller: Mapping[str, tuple[Any, Any]]
    stayed: Sequence[str]


def densify(folder: Path, out: Path, say: Callable[[str], object], *, smaller: bool = False) -> Plain:
    """Write a packed model as plain safetensors.

    Parameters
    ----------
    folder, out
        The packed model, and where to; nothing is overwritten.
    say
        Called with lines of text.
    smaller
        Leave out heads, neurons and layers that are zero instead of keeping zeros in place.

    Raises
    ------
    UserError
        There is nothing that a smaller model could leave out.
    """
    from sparsehpc.models.family import family_of, structure_from_config
    from sparsehpc.models.packed import PackedModel
    from sparsehpc.models.packed_writer import check_new_folder, decoded, write_plain
    from sparsehpc.models.target import read_config
    from sparsehpc.pruning.shrink import find_smaller

    check_new_folder(out)
    packed = PackedModel(folder)
    config = read_config(folder)
    found = None
    if smaller:
        layers = (decoded(section) for section in packed.sections() if section.layer is not None)
        found = find_smaller(packed.structure, config, layers)
        if not found.config:
            raise UserError(
                f"{folder}: no smaller model, as {'; '.join(found.stayed) or 'no head, neuron or layer is zero'}",
                "sparsehpc densify without --smaller keeps zeros in place; patterns heads, neurons and layers of "
                "sparsehpc prune remove whole units",
            )
    write_plain(out, packed, Lines(say), found)
    complete = family_of(config).complete(config)
    after = structure_from_config(read_config(out))
    return Plain(
        manifest=packed.manifest,
        params_before=packed.structure.params_total,
        params_after=after.params_total,
        smaller={} if found is None else {key: (complete.get(key), value) for key, value in found.config.items()},
        stayed=() if found is None else found.stayed,
    )


class Lines:
    """Progress as a line per stage; on a terminal the steps are counted in place."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say, self._stage = say, ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{stage} {done}/{total}\x1b[K" + "\n" * (done == total))
            sys.stderr.flush()
        elif stage != self._stage:
            self._say(f"{stage}: {total}")
        self._stage = stage


def _snapshot(request: Request, say: Callable[[str], object]) -> Snapshot:
    if not is_prepared(request.model, request.revision) and offline_preparable(request.model):
        return prepare(request.model, request.revision, say)
    return open_snapshot(request.model, request.revision)


def _typed(options: Mapping[str, str]) -> dict[str, Scalar]:
    """Option values as a study file would hold them: numbers and true or false where they read as such."""
    typed: dict[str, Scalar] = {}
    for name, text in options.items():
        value: Scalar = text
        if text in ("true", "false"):
            value = text == "true"
        else:
            for kind in (int, float):
                try:
                    value = kind(text)
                    break
                except ValueError:
                    continue
        typed[name] = value
    return typed


def _collect(problems: list[str], make: Callable[[], T], otherwise: T) -> T:
    try:
        return make()
    except UserErrors as errors:
        problems += errors.problems
    except UserError as error:
        problems.append(error.message)
    return otherwise


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)

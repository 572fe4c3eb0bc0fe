"""What a study file says: one frozen dataclass a table, and the rules its values keep.

The annotations are the rules: pydantic checks them (`jobs.study_tables`) and turns them into the JSON Schema that
editors read (`jobs.study_schema`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from slurm.resources import Resources
from sparsehpc.core.errors import unknown
from sparsehpc.core.spec import DEFAULT_TARGETS, DTYPES, Calibration, Latency, Scalar, Windows
from sparsehpc.formats.base import FORMATS
from sparsehpc.pruning.base import METHODS
from sparsehpc.pruning.patterns import PATTERNS
from sparsehpc.text.base import corpus_problem

#: A name that becomes a folder, a job name and a heading: nothing that a path or a shell reads as more.
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
#: A sparsity is an exact decimal; more places than this are a slip (and would make huge texts).
SPARSITY_PLACES = 9
TARGETS = ("attention", "mlp", "embedding", "lm_head")

_CONFIG = ConfigDict(extra="forbid")
_SEED_LIMIT = 2**63 - 1


def method_names() -> list[str]:
    """Every registered pruning method."""
    return METHODS.names()


def pattern_names() -> list[str]:
    """Every pattern of zeros, in the order tables show them."""
    return list(PATTERNS)


def allocation_names() -> list[str]:
    """Every allocation that some method offers."""
    return sorted({"default"} | {name for _, method in METHODS for name in method.allocations})


def variant_names() -> list[str]:
    """Every registered storage format."""
    return FORMATS.names()


def show(value: object) -> str:
    """Value of a file as a message shows it: one line, no control characters, not endless."""
    if isinstance(value, list | tuple):
        text = f"[{', '.join(map(show, value))}]"
    else:
        text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_of(kind: str, names: Callable[[], Iterable[str]]) -> tuple[Any, ...]:
    """Annotations of a name out of a registry: the check, and the enumeration for editors."""

    def check(value: str) -> str:
        legal = list(names())
        if value not in legal:
            raise ValueError(unknown(kind, value, legal))
        return value

    def enumerate_names(schema: dict[str, Any]) -> None:
        schema["enum"] = sorted(names())

    return Field(strict=True, json_schema_extra=enumerate_names), AfterValidator(check)


def _is_name(value: str) -> str:
    if not re.fullmatch(NAME, value) or ".." in value:
        raise ValueError("letters, digits, '.', '_' and '-', starting with a letter or digit, at most 64")
    return value


def _is_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("one line of printable text")
    return value


def _sparsity(value: object) -> Decimal:
    legal = "a number from 0 to 1 without quotes, for example 0.3 for 30 %"
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(legal)
    number = Decimal(value)
    if not number.is_finite() or not 0 <= number <= 1:
        raise ValueError(legal)
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and -exponent > SPARSITY_PLACES:
        raise ValueError(f"{legal}, with at most {SPARSITY_PLACES} decimal places")
    return number


def _listed(value: object) -> object:
    """Axes with a scalar default may be written as one value or as a list."""
    return value if isinstance(value, list | tuple) else [value]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted(show(value) for value, count in Counter(values).items() if count > 1)
    if twice:
        raise ValueError(f"each value once; {', '.join(twice)} is there twice")
    return values


def _corpus(value: str) -> str:
    _is_line(value)
    if problem := corpus_problem(value):
        raise ValueError(problem)
    return value


Name: TypeAlias = Annotated[
    str, Field(strict=True, json_schema_extra={"pattern": f"^{NAME}$"}), AfterValidator(_is_name)
]
Line: TypeAlias = Annotated[str, Field(strict=True), AfterValidator(_is_line)]
Seed: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=_SEED_LIMIT)]
Count: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=10**9)]
WindowTokens: TypeAlias = Annotated[int, Field(strict=True, ge=2, le=10**7)]
Sparsity: TypeAlias = Annotated[
    Decimal, BeforeValidator(_sparsity), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
]
MethodName: TypeAlias = Annotated[str, *_one_of("method", method_names)]
PatternName: TypeAlias = Annotated[str, *_one_of("pattern", pattern_names)]
VariantName: TypeAlias = Annotated[str, *_one_of("variant", variant_names)]
AllocationName: TypeAlias = Annotated[str, *_one_of("allocation", allocation_names)]
TargetName: TypeAlias = Annotated[str, *_one_of("target", lambda: TARGETS)]
DTypeName: TypeAlias = Annotated[str, *_one_of("dtype", lambda: DTYPES)]
CorpusName: TypeAlias = Annotated[str, Field(strict=True), AfterValidator(_corpus)]

T = TypeVar("T")
#: A list of distinct values, at least one.
Axis: TypeAlias = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(_distinct)]
#: The same, where one value may stand without brackets.
OneOrMore: TypeAlias = Annotated[
    tuple[T, ...], Field(min_length=1), BeforeValidator(_listed), AfterValidator(_distinct)
]


#: Resource class of a model that names none.
DEFAULT_RESOURCE = "cpu"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StudyTable:
    """``[study]``: name of the study (and of its run folder), and the seed of everything random."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    name: Name
    seed: Seed = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelTable:
    """``[[models]]``: one model, the type of its weights and activations, and the resource class it runs in."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    id: Line
    revision: Line | None = None
    dtype: DTypeName = "float32"
    resource: Name = DEFAULT_RESOURCE


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GridTable:
    """``[grid]``: axes whose product is planned; ``options`` are the keys that belong to methods.

    ``refit``, ``true_sequential``, ``allocation`` and every method option may be one value or a list of them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    methods: Axis[MethodName]
    patterns: Axis[PatternName] = ("unstructured",)
    sparsities: Axis[Sparsity]
    variants: Axis[VariantName]
    allocation: OneOrMore[AllocationName] = ("default",)
    targets: Axis[TargetName] = DEFAULT_TARGETS
    refit: OneOrMore[Annotated[bool, Field(strict=True)]] = (False,)
    true_sequential: OneOrMore[Annotated[bool, Field(strict=True)]] = (False,)
    options: Annotated[Mapping[str, tuple[Scalar, ...]], SkipJsonSchema()] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationTable:
    """``[evaluation]``: the text that behaviour is measured on."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    corpus: CorpusName
    windows: Count
    window_tokens: WindowTokens

    def cut(self) -> Windows:
        """The same as part of a cell."""
        return Windows(corpus=self.corpus, windows=self.windows, window_tokens=self.window_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationTable:
    """``[calibration]``: the text that methods learn from, drawn once per seed."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    corpus: CorpusName
    windows: Count
    window_tokens: WindowTokens
    seeds: Axis[Seed] = (0,)

    def draws(self) -> tuple[Calibration, ...]:
        """One calibration per seed, as part of a cell."""
        return tuple(
            Calibration(corpus=self.corpus, windows=self.windows, window_tokens=self.window_tokens, seed=seed)
            for seed in self.seeds
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTable:
    """``[latency]``: time decoding of every cell as well; without this table nothing is timed."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    prompt_tokens: Count = 16
    new_tokens: Count = 32
    repeats: Annotated[int, Field(strict=True, ge=2, le=1000)] = 7
    threads: Annotated[int, Field(strict=True, ge=1, le=4096)] | None = None

    def of(self, cpus: int) -> Latency:
        """The same as part of a cell, whose job has so many cores."""
        return Latency(
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            repeats=self.repeats,
            threads=self.threads or cpus,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A whole study file, checked.

    Parameters
    ----------
    path
        The file; relative paths in it start at its folder.
    text
        The file as it is, for the run folder's copy.
    """

    path: Path
    text: str
    study: StudyTable
    models: tuple[ModelTable, ...]
    grids: tuple[GridTable, ...]
    evaluation: EvaluationTable
    calibration: CalibrationTable | None
    resources: Mapping[str, Resources]
    latency: LatencyTable | None = None

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.study.name

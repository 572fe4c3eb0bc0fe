"""What a cell is: every choice that decides a result, and the content hash that names it.

A `Cell` is one combination of model, method, pattern, sparsity and variant with the texts it is measured
and calibrated on. Its identity leaves out everything that stands at its default, so that a new axis
(another field with a default) leaves the ids of existing cells unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from decimal import Decimal
from typing import Any, Literal, TypeAlias, get_args

DType = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(DType)
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

#: A method option's value, as a study file can write it.
Scalar: TypeAlias = "str | int | float | bool"

NO_METHOD = "none"
NO_PATTERN = "none"
DENSE = "dense"
DEFAULT_TARGETS: tuple[str, ...] = ("attention", "mlp")

#: Hexadecimal digits of a cell id: 80 bits, no collision among any number of cells a study can hold.
CELL_ID_LENGTH = 20

#: Made once: `json.dumps` makes an encoder a call, and a plan has hundreds of thousands.
_IDENTITY = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, check_circular=False)
_SPECIFICATION = json.JSONEncoder(sort_keys=True, check_circular=False)


def decimal_text(value: Decimal | int | str) -> str:
    """Canonical text of a sparsity as written: ``0.30`` and ``0.3`` are the same cell.

    >>> decimal_text(Decimal("0.30")), decimal_text(0), decimal_text("1")
    ('0.3', '0', '1')
    """
    text = format(Decimal(value), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Which text is read, and how it is cut.

    Parameters
    ----------
    corpus
        ``samples``, ``python-docs``, ``wikitext2``, ``file:PATH``, ``lines:PATH``, ...
    windows
        Number of windows.
    window_tokens
        Tokens a window holds at most, a BOS token included.
    """

    corpus: str
    windows: int
    window_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Calibration windows and the seed that draws them."""

    corpus: str
    windows: int
    window_tokens: int
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pruning:
    """How weights are chosen and removed: everything about a cell except how they are stored.

    Cells of one model that share a `Pruning` are pruned once per job.

    Parameters
    ----------
    method
        Registered pruning method, or ``none``.
    options
        Options of the method that differ from its defaults, sorted by name.
    pattern
        ``unstructured``, ``2:4`` (keep 2 of 4), ..., or ``none``.
    sparsity
        Requested fraction of the prunable weights to be zero, as the decimal written.
    allocation
        How the budget is spread over layers; ``default`` is the method's own rule.
    targets
        Groups whose linears are pruned.
    refit
        Re-optimise the kept weights afterwards.
    true_sequential
        Recompute statistics inside a layer, after each group of linears that read the same input is pruned.
    calibration
        Text the method learns from; None for methods without data.
    seed
        Seed of the study.
    """

    method: str = NO_METHOD
    options: tuple[tuple[str, Scalar], ...] = ()
    pattern: str = NO_PATTERN
    sparsity: str = "0"
    allocation: str = "default"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    refit: bool = False
    true_sequential: bool = False
    calibration: Calibration | None = None
    seed: int = 0

    @property
    def fraction(self) -> Decimal:
        """The requested sparsity as an exact decimal."""
        return Decimal(self.sparsity)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned at all (the dense reference)."""
        return self.method == NO_METHOD


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """How decoding is timed.

    Parameters
    ----------
    prompt_tokens
        Tokens that are read at once.
    new_tokens
        Tokens that follow one by one.
    repeats
        Sequences of each side, in turns with the dense model, after one that is not counted.
    threads
        Threads, each on a core of its own.
    """

    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One combination to be computed: the unit that is done, failed or missing.

    Parameters
    ----------
    model
        Shipped name, hub id, folder, GGUF file or ``random:...``.
    revision
        Commit of a hub model; None elsewhere.
    dtype
        Type of weights and activations.
    device
        ``cpu`` or ``cuda``: follows from the resource class, never from the machine.
    resource
        Name of the resource class; where a cell runs does not decide its result, so it is no part of the id.
    pruning
        How weights are removed.
    variant
        How the weights are stored and run: a registered format, or ``dense``.
    evaluation
        Text that behaviour is measured on.
    latency
        Where this is given, the cell is timed instead: how long decoding takes, next to the dense model.
    """

    model: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    resource: str = "cpu"
    pruning: Pruning = dataclasses.field(default_factory=Pruning)
    variant: str = DENSE
    evaluation: Windows
    latency: Latency | None = None

    @property
    def kind(self) -> str:
        """What is measured: ``behaviour``, or ``latency``."""
        return "behaviour" if self.latency is None else "latency"

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense reference of its model."""
        return self.pruning.is_dense and self.variant == DENSE

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, defaults left out."""
        values = _without_defaults(self)
        values.pop("resource", None)
        return values

    @property
    def cell_id(self) -> str:
        """Content hash of the identity, in hexadecimal."""
        text = _IDENTITY.encode(self.identity())
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:CELL_ID_LENGTH]

    @property
    def walk_key(self) -> tuple[object, ...]:
        """Cells with equal keys can share one pass over the model."""
        return (self.model, self.revision, self.dtype, self.device, self.resource, self.evaluation, self.latency)

    def label(self) -> str:
        """Say in a few words what the cell is."""
        timed = "" if self.latency is None else " latency"
        if self.is_dense:
            return f"{self.model} dense{timed}"
        p = self.pruning
        if p.is_dense:
            return f"{self.model} {self.variant}{timed}"
        extra = "" if p.calibration is None else f" seed {p.calibration.seed}"
        return f"{self.model} {p.method} {p.pattern} {p.sparsity} {self.variant}{extra}{timed}"

    def to_json(self) -> str:
        """Full specification as JSON, defaults included; `from_json` reads it back."""
        return _SPECIFICATION.encode(_as_dict(self))

    @classmethod
    def from_json(cls, text: str) -> Cell:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        pruning, latency = data.pop("pruning"), data.pop("latency", None)
        calibration = pruning.pop("calibration")
        pruning["options"] = tuple((name, value) for name, value in pruning["options"])
        pruning["targets"] = tuple(pruning["targets"])
        return cls(
            **{k: v for k, v in data.items() if k != "evaluation"},
            evaluation=Windows(**data["evaluation"]),
            latency=None if latency is None else Latency(**latency),
            pruning=Pruning(**pruning, calibration=None if calibration is None else Calibration(**calibration)),
        )


@functools.cache
def _fields(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of a dataclass; a plan asks for them hundreds of thousands of times."""
    found = []
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append((field.name, default))
    return tuple(found)


def _without_defaults(item: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, nested ones likewise."""
    values: dict[str, Any] = {}
    for name, default in _fields(item.__class__):
        value = getattr(item, name)
        if default is not dataclasses.MISSING and (value is default or value == default):
            continue
        values[name] = _without_defaults(value) if hasattr(value, "__dataclass_fields__") else value
    return values


def _as_dict(item: Any) -> dict[str, Any]:
    """Every field of a dataclass, nested ones likewise; plain values are shared, not copied."""
    values = {}
    for name, _ in _fields(item.__class__):
        value = getattr(item, name)
        values[name] = _as_dict(value) if hasattr(value, "__dataclass_fields__") else value
    return values

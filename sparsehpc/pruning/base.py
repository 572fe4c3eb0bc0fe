"""The contract of a pruning method.

A method is one file in ``sparsehpc/pruning/methods``: name, citation, options and code together. Importing it
must not import torch. What it must decide is small: which statistics of a layer's inputs it needs, and a pure
function from (weight, statistics, budget) to the pruned weight.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from sparsehpc.core.errors import UserError, UserErrors, unknown
from sparsehpc.core.registry import Registry
from sparsehpc.core.spec import Scalar
from sparsehpc.pruning import allocation, structured
from sparsehpc.pruning.patterns import Pattern, parse_pattern
from sparsehpc.pruning.types import DenseSurvey, Pruned, Site, Statistic

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal
    from fractions import Fraction

    import torch

    from sparsehpc.core.spec import Pruning
    from sparsehpc.models.structure import Parameter

__all__ = [
    "METHODS",
    "DenseSurvey",
    "Method",
    "Options",
    "Pruned",
    "Site",
    "Statistic",
    "build_options",
    "canonical_options",
    "make_method",
]

METHODS: Registry[type[Method]] = Registry("method", "sparsehpc.pruning.methods")

#: Patterns of zeros. "keep N of M" fixes the sparsity at 1 - N/M.
UNSTRUCTURED = "unstructured"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of a method; a subclass lists them with their defaults."""


class Method(ABC):
    """A pruning method, made once per combination and job.

    Parameters
    ----------
    pruning
        The combination: pattern, exact sparsity, seed, ...
    options
        The method's options.

    Attributes
    ----------
    name, title, citation, formula
        For tables, documentation and the methods paragraph.
    cost, advice, differs
        What it costs, when to use it, and where it departs from its published code; for the documentation.
    statistics
        Statistics of the layer inputs it needs; empty for methods without data.
    scope
        What its counts are rounded down in: each ``row``, each ``matrix``, or the whole ``model``.
    patterns
        Patterns it can produce.
    allocations
        Ways it can spread the budget over layers; ``default`` is its own rule.
    learned_allocations
        Those that need input norms of the dense model before anything is pruned.
    refits
        Whether its kept weights can be re-optimised afterwards (``refit = true``).
    workspace_bytes_per_weight
        Memory that its scores and updates take for every weight of the matrix at hand; for the plan's estimate.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    formula: ClassVar[str]
    cost: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    differs: ClassVar[str] = ""
    statistics: ClassVar[tuple[Statistic, ...]] = ()
    scope: ClassVar[Literal["row", "matrix", "model"]] = "matrix"
    patterns: ClassVar[tuple[str, ...]] = (UNSTRUCTURED,)
    allocations: ClassVar[tuple[str, ...]] = ("default",)
    #: Whether units are ranked over the whole model, so that a layer may lose none or many.
    whole_model: ClassVar[bool] = False
    learned_allocations: ClassVar[tuple[str, ...]] = ()
    refits: ClassVar[bool] = False
    workspace_bytes_per_weight: ClassVar[int] = 16
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, pruning: Pruning, options: Options) -> None:
        self.pruning = pruning
        self.options = options
        #: Share of every weight that goes, by name, where an allocation spread the budget unevenly.
        self.budgets: Mapping[str, Fraction] | None = None
        #: By weight name: what is added to the linear's bias (it may have had none); None takes its bias away.
        self.bias_changes: dict[str, torch.Tensor | None] = {}

    @classmethod
    def needs_calibration(cls, allocation: str = "default", refit: bool = False) -> bool:
        """Whether the method reads calibration text, given how the budget is spread and whether it refits."""
        return bool(cls.statistics) or refit or allocation in cls.learned_allocations

    @classmethod
    def canonical_allocation(cls, allocation: str) -> str:
        """Name ``default`` for what is the method's own rule anyway, so that it is not planned twice."""
        own = allocation in cls.allocations and allocation not in cls.learned_allocations
        return "default" if own else allocation

    @property
    def wanted_statistics(self) -> tuple[Statistic, ...]:
        """Statistics of the layer inputs that this combination needs."""
        if self.pruning.refit and "hessian" not in self.statistics:
            return (*self.statistics, "hessian")
        return self.statistics

    @property
    def dense_statistics(self) -> tuple[Statistic, ...] | None:
        """Input statistics of the dense model that `learn` needs; None if it needs no walk of the dense model."""
        return ("input_norm",) if self.pruning.allocation in self.learned_allocations else None

    def learn(self, parameters: Sequence[Parameter], read: Callable[[str], torch.Tensor], survey: DenseSurvey) -> None:
        """Look at the dense model before the walk; called where `dense_statistics` is not None.

        Parameters
        ----------
        parameters, read
            As for `survey`.
        survey
            What the walk over the calibration text found.
        """
        norms = {name: statistics["input_norm"] for name, statistics in survey.inputs.items()}
        self.budgets = allocation.budgets(self.pruning, parameters, read, norms)

    def sparsity(self, site: Site) -> Decimal | Fraction:
        """Share of one weight that goes: the requested one, unless an allocation gave this weight its own."""
        return self.pruning.fraction if self.budgets is None else self.budgets[site.parameter.name]

    def apply(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Prune one weight and, where the combination asks for it, refit what is kept; parameters as for `prune`."""
        pruned = self.prune(weight, site, statistics)
        if not self.pruning.refit:
            return pruned
        from sparsehpc.pruning.refit import refit

        return refit(weight, pruned, statistics["hessian"], site.parameter.name)

    @classmethod
    def unsupported(cls, pruning: Pruning, parameters: Sequence[Parameter]) -> str | None:
        """Why the combination cannot be on these prunable parameters, or None where it can. Asked at plan time."""
        if (reason := allocation.unsupported(pruning)) is not None:
            return reason
        pattern = parse_pattern(pruning.pattern)
        if pruning.true_sequential and pattern.kind == "structured":
            return f"pattern {pattern.name} decides over several linears at once; true_sequential takes them in turn"
        if pruning.true_sequential and not cls.statistics and not pruning.refit:
            return f"{cls.name} uses no statistics of a layer's inputs that true_sequential could recompute"
        if cls.statistics or pruning.refit:
            for parameter in parameters:
                if parameter.kind == "embedding":
                    who = f"{cls.name} with refit" if not cls.statistics else cls.name
                    return f"{who} needs the inputs of what it prunes, and {parameter.name} is looked up by token"
        if pattern.kind == "structured":
            return structured.unsupported(pruning, parameters, whole_model=cls.whole_model)
        for parameter in parameters:
            rows, columns = parameter.shape
            if (reason := pattern.unsupported(rows, columns)) is not None:
                return f"{parameter.name}: {reason}"
        return None

    def prune_section(
        self,
        weights: Mapping[str, torch.Tensor],
        sites: Sequence[Site],
        statistics: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> dict[str, Pruned]:
        """Prune (and refit) the weights of one decoder layer, or of what lies outside all of them.

        Weight by weight, unless the pattern takes rows and columns of several weights together.

        Parameters
        ----------
        weights
            Dense weights by name; must not be changed in place.
        sites
            Where they are, in module order.
        statistics
            Statistics of their inputs, by name.
        """
        if self.pattern.kind != "structured":
            return {
                site.parameter.name: self.apply(
                    weights[site.parameter.name], site, statistics.get(site.parameter.name, {})
                )
                for site in sites
            }
        results = self.prune_units(weights, sites, statistics)
        if self.pruning.refit:
            from sparsehpc.pruning.refit import refit

            for name, pruned in results.items():
                results[name] = refit(weights[name], pruned, statistics[name]["hessian"], name)
        return results

    def prune_units(
        self,
        weights: Mapping[str, torch.Tensor],
        sites: Sequence[Site],
        statistics: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> dict[str, Pruned]:
        """Remove units of a structured pattern; parameters as for `prune_section`."""
        return structured.prune_units(
            self.pruning, weights, sites, lambda units: self.unit_scores(units, weights, statistics)
        )

    def unit_scores(
        self,
        units: structured.Units,
        weights: Mapping[str, torch.Tensor],
        statistics: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> torch.Tensor:
        """Importance of every unit of one decoder layer, float64; methods with structured patterns have it."""
        raise NotImplementedError(f"{self.name} does not score {self.pattern.name}")

    @property
    def pattern(self) -> Pattern:
        """The combination's pattern of zeros."""
        return parse_pattern(self.pruning.pattern)

    @classmethod
    def survey_all(
        cls, methods: Sequence[Method], parameters: Sequence[Parameter], read: Callable[[str], torch.Tensor]
    ) -> None:
        """Survey for several combinations of this method at once; those that can share passes override this.

        Parameters
        ----------
        methods
            Objects of this class with the same targets.
        parameters, read
            As for `survey`.
        """
        for method in methods:
            method.survey(parameters, read)

    def survey(self, parameters: Sequence[Parameter], read: Callable[[str], torch.Tensor]) -> None:
        """Look at all weights once before the walk; only methods that rank across layers override this.

        Parameters
        ----------
        parameters
            Prunable parameters in module order.
        read
            Reads one weight; it must not be kept.
        """

    @abstractmethod
    def prune(self, weight: torch.Tensor, site: Site, statistics: Mapping[str, torch.Tensor]) -> Pruned:
        """Prune one weight (out_features x in_features).

        Parameters
        ----------
        weight
            Dense weight; must not be changed in place.
        site
            Which weight it is.
        statistics
            By name: ``input_norm`` (in_features, float64: root of the sum of squares over calibration tokens),
            ``hessian`` (in_features x in_features, float64 or float32 as `statistics.DTYPE` says: X X^T summed).
        """


def build_options(name: str, values: Mapping[str, Scalar]) -> Options:
    """Options of the method called ``name`` from a study file; every problem in one `UserErrors`."""
    kind = METHODS.get(name).options_type
    hints = get_type_hints(kind)
    problems: list[str] = []
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            problems.append(unknown("option", key, hints))
        elif (problem := _type_problem(hints[key], value)) is not None:
            problems.append(f"option {key!r} {problem}, not {value!r}")
        else:
            checked[key] = float(value) if hints[key] is float else value
    if problems:
        raise UserErrors(f"options of method {name!r}", problems)
    return kind(**checked)


def canonical_options(name: str, values: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    """Options that differ from the method's defaults, checked and sorted by name, as `Pruning.options` keeps them."""
    built = build_options(name, values)
    given = ((field.name, getattr(built, field.name), field.default) for field in dataclasses.fields(built))
    return tuple(sorted((key, value) for key, value, default in given if value != default))


def make_method(pruning: Pruning) -> Method:
    """Build the method of one combination; `UserError` where it cannot be."""
    kind = METHODS.get(pruning.method)
    pattern = parse_pattern(pruning.pattern)
    if pattern.name not in kind.patterns:
        raise UserError(
            f"method {kind.name!r} cannot produce pattern {pattern.name!r}", f"legal: {', '.join(kind.patterns)}"
        )
    if kind.needs_calibration(pruning.allocation, pruning.refit) and pruning.calibration is None:
        raise UserError(f"method {kind.name!r} needs calibration text", "add a [calibration] table to the study")
    return kind(pruning, build_options(pruning.method, dict(pruning.options)))


def _type_problem(hint: Any, value: object) -> str | None:
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"must be one of {', '.join(map(repr, get_args(hint)))}"
    if hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return None if fits else "must be a number"
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    return None if fits else f"must be of type {hint.__name__}"

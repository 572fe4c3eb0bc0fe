"""Which method, sparsity and format keep the promises a person asks for, with the evidence from the tables."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aggregate.diff import cell_name
from aggregate.figures.data import SUBJECT_AXES, Record, axis_words, matching, missing, records, varying
from aggregate.figures.style import MIB, number
from aggregate.floor import NO_MEASURABLE_DIFFERENCE, is_dense_but_for_rounding
from aggregate.latency import beside
from aggregate.private import scrub
from aggregate.report.phrases import mib, share, signed
from aggregate.tables import read_latency, read_table
from sparsehpc.core import schema
from sparsehpc.core.errors import UserError, UserErrors, unknown
from sparsehpc.core.layout import RunFolder

#: Why there is no advice.
UNTRAINED = "untrained: its weights are random, so its behaviour says nothing about language"

#: Alternatives that are named beside the best.
_ALTERNATIVES = 3

#: What cells of one way of pruning share whatever text they were calibrated on.
_WAY = [name for name in schema.KEYS.names if name not in ("cell_id", "calibration_seed")]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What is asked for; None where it does not matter.

    Parameters
    ----------
    max_perplexity
        Largest perplexity, or with ``relative_perplexity`` the largest rise over dense (0.05 for +5 %).
    relative_perplexity
        Whether ``max_perplexity`` is a rise over dense.
    max_mib
        Largest size in MiB.
    min_agreement
        Smallest share of the dense model's top-1 choices.
    min_speedup
        Smallest speed against dense, as measured.
    """

    max_perplexity: float | None = None
    relative_perplexity: bool = True
    max_mib: float | None = None
    min_agreement: float | None = None
    min_speedup: float | None = None

    @property
    def about_behaviour(self) -> bool:
        """Whether any limit is about what the model says."""
        return self.max_perplexity is not None or self.min_agreement is not None

    @classmethod
    def parse(
        cls,
        max_ppl: str | None = None,
        max_mib: float | None = None,
        min_agreement: float | None = None,
        min_speedup: float | None = None,
    ) -> Limits:
        """Read what a person writes: ``--max-ppl +5%`` or ``--max-ppl 30``.

        Raises
        ------
        UserErrors
            Everything that is no limit, at once.
        """
        problems = []
        relative, perplexity = True, None
        if max_ppl is not None:
            match = re.fullmatch(r"\s*(?:\+\s*([\d.]+)\s*%|([\d.]+))\s*", max_ppl)
            try:
                perplexity = float(match[1]) / 100 if match and match[1] else float(match[2]) if match else math.nan
            except ValueError:
                perplexity = math.nan
            relative = bool(match and match[1])
            if math.isnan(perplexity):
                problems.append(f"--max-ppl {max_ppl!r}: write a rise such as +5%, or a perplexity such as 30")
        problems += [
            f"--{name} {value:g} must be above 0"
            for name, value in (("max-mib", max_mib), ("min-speedup", min_speedup))
            if value is not None and not value > 0
        ]
        if min_agreement is not None and not 0 <= min_agreement <= 1:
            problems.append(f"--min-agreement {min_agreement:g} must lie between 0 and 1")
        if max_ppl is None and max_mib is None and min_agreement is None and min_speedup is None:
            problems.append("no limit was given: --max-ppl, --max-mib, --min-agreement or --min-speedup")
        if problems:
            raise UserErrors("no advice without limits", problems, "sparsehpc advise RUN --max-ppl +5% --max-mib 300")
        return cls(
            max_perplexity=perplexity,
            relative_perplexity=relative,
            max_mib=max_mib,
            min_agreement=min_agreement,
            min_speedup=min_speedup,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A cell and how it stands to the limits.

    Parameters
    ----------
    name
        Model, method, pattern, sparsity and format.
    cell_id
        The evidence.
    evidence
        Its figures in words.
    misses
        Limits that it misses, in words; empty where it qualifies.
    excess
        By how much in all, relative to each limit; 0 where it qualifies.
    size_bytes, loss
        For ordering: bytes, and the bound of log-perplexity against dense.
    pruned
        False for a cell of the dense model.
    gains
        False for a pruned cell that qualifies but is no smaller than a cell of the dense model that does too: whatever
        it loses, it gains nothing.
    """

    name: str
    cell_id: str
    evidence: str
    misses: tuple[str, ...]
    excess: float
    size_bytes: float
    loss: float
    pruned: bool = True
    gains: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """Answer for one model.

    Parameters
    ----------
    model
        Model and dtype.
    qualifying
        Smallest first; empty where nothing qualifies.
    closest
        What comes closest where nothing qualifies.
    warning
        Why there is none.
    """

    model: str
    qualifying: tuple[Choice, ...]
    closest: Choice | None
    warning: str = ""

    def text(self) -> str:
        """The advice in words."""
        lines = [self.model]
        if self.warning:
            lines.append(f"  {self.warning}")
        elif self.qualifying:
            best = self.qualifying[0]
            others = [choice for choice in self.qualifying[1:] if choice.gains]
            lines += [f"  take {best.name}", f"    {best.evidence}", f"    cell {best.cell_id}"]
            lines += [f"  or {other.name}: {other.evidence}" for other in others[:_ALTERNATIVES]]
            if not best.pruned:
                lines.append("  it is not pruned: nothing pruned that was measured qualifies and is smaller")
        else:
            lines.append("  nothing that was measured qualifies")
            if self.closest is not None:
                lines += [
                    f"  closest is {self.closest.name}: it misses {' and '.join(self.closest.misses)}",
                    f"    {self.closest.evidence}",
                    f"    cell {self.closest.cell_id}",
                ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return dataclasses.asdict(self)


def advise(run: RunFolder, limits: Limits, model: str | None = None) -> list[Advice]:
    """What to take, per model of a run.

    The bound on the bad side of a figure's interval must keep the limit, not the estimate alone. Among what
    qualifies, the smallest comes first; at equal size, the one with the smaller loss. A pruned cell that is no smaller
    than an unpruned one that qualifies too is named after it.

    Raises
    ------
    UserError
        A model that the run does not hold.
    """
    frame = beside(read_table(run, "global").to_pandas(), read_latency(run))
    rows = frame[frame["convention"] != "study"]
    models = list(dict.fromkeys(rows["model"]))
    if model is not None:
        if model not in models:
            raise UserError(unknown("model of this run", model, models))
        rows = rows[rows["model"] == model]
    advice = []
    for one in records(rows[list(SUBJECT_AXES)].drop_duplicates()):
        cells, name, dtype = matching(rows, one), one["model"], one["dtype"]
        same = matching(rows, {"model": name, "dtype": dtype})
        extra = [scrub(axis_words(axis, one[axis])) for axis in varying(same, SUBJECT_AXES[2:])]
        label = ", ".join([f"{scrub(str(name))} in {dtype}", *extra])
        if limits.about_behaviour and not cells["trained"].all():
            advice.append(Advice(label, (), None, UNTRAINED))
            continue
        choices = [_worst(part, limits) for _, part in cells.groupby(_WAY, dropna=False, sort=False)]
        good = _ordered([choice for choice in choices if not choice.misses])
        closest = min((c for c in choices if c.misses), key=lambda c: (c.excess, c.size_bytes, c.cell_id), default=None)
        advice.append(Advice(label, tuple(good), None if good else closest))
    return advice


def runs_of(model: str, folder: Path) -> list[RunFolder]:
    """Aggregated runs below a folder that hold a model."""
    found = []
    for table in sorted(folder.glob("*/tables/global.parquet")):
        run = RunFolder(table.parent.parent)
        if model in read_table(run, "global")["model"].to_pylist():
            found.append(run)
    return found


def _worst(seeds: pd.DataFrame, limits: Limits) -> Choice:
    """The calibration seed that stands worst: the luckiest is no advice."""
    choices = [_choice(row, limits) for row in records(seeds)]
    worst = max(choices, key=lambda choice: (choice.excess, choice.loss, choice.cell_id))
    if len(choices) == 1:
        return worst
    return dataclasses.replace(worst, evidence=f"{worst.evidence}, the worst of {len(choices)} calibration seeds")


def _choice(row: Record, limits: Limits) -> Choice:
    misses: list[str] = []
    excess = 0.0

    def check(value: float, limit: float, text: str) -> None:
        nonlocal excess
        if math.isnan(value):
            misses.append(f"{text} (not measured)")
            excess += 1e6
        elif value > limit:
            misses.append(text)
            excess += value / limit - 1 if limit > 0 else value

    dense, perplexity = _value(row, "perplexity_dense"), _bound(row, "perplexity", "hi")
    if limits.max_perplexity is not None:
        if limits.relative_perplexity:
            check(
                perplexity / dense, 1 + limits.max_perplexity, f"perplexity at most +{100 * limits.max_perplexity:g} %"
            )
        else:
            check(perplexity, limits.max_perplexity, f"perplexity at most {limits.max_perplexity:g}")
    if limits.max_mib is not None:
        check(_value(row, "bytes_total") / MIB, limits.max_mib, f"size at most {limits.max_mib:g} MiB")
    if limits.min_agreement is not None:
        check(
            1 - _bound(row, "top1_agreement", "lo"),
            1 - limits.min_agreement + 1e-12,
            f"top-1 agreement of at least {limits.min_agreement:g}",
        )
    if limits.min_speedup is not None:
        check(1 / _value(row, "speedup"), 1 / limits.min_speedup, f"speed of at least {limits.min_speedup:g} x dense")
    return Choice(
        cell_name(row),
        str(row["cell_id"]),
        _evidence(row),
        tuple(misses),
        excess,
        _value(row, "bytes_total"),
        perplexity / dense,
        row["method"] != "none",
    )


def _ordered(choices: list[Choice]) -> list[Choice]:
    """Smallest first, at equal size the one that loses less; what gains nothing over an unpruned one comes last."""
    dense = min((choice.size_bytes for choice in choices if not choice.pruned), default=math.inf)
    marked = [
        dataclasses.replace(choice, gains=not choice.pruned or not choice.size_bytes >= dense) for choice in choices
    ]
    return sorted(marked, key=lambda choice: (not choice.gains, choice.size_bytes, choice.loss, choice.cell_id))


def _evidence(row: Record) -> str:
    parts = []
    if not missing(row.get("bytes_total")):
        parts.append(mib(row["bytes_total"]))
    if not missing(row.get("perplexity")) and not missing(row.get("perplexity_dense")):
        same = is_dense_but_for_rounding("perplexity", row)
        change = NO_MEASURABLE_DIFFERENCE if same else signed(row["perplexity"] / row["perplexity_dense"] - 1)
        span = f"{number(row['perplexity'])}{_span(row, 'perplexity')}"
        parts.append(f"perplexity {number(row['perplexity_dense'])} -> {span} ({change})")
    if not missing(row.get("top1_agreement")):
        parts.append(f"top-1 agreement {share(row['top1_agreement'])}")
    if not missing(row.get("speedup")):
        parts.append(f"{number(row['speedup'], 3)} x the speed of dense")
    return ", ".join(parts)


def _span(row: Record, metric: str) -> str:
    lo, hi = _value(row, f"{metric}_lo"), _value(row, f"{metric}_hi")
    return "" if math.isnan(lo) else f" [{number(lo)}, {number(hi)}]"


def _bound(row: Record, metric: str, side: str) -> float:
    bound = _value(row, f"{metric}_{side}")
    return _value(row, metric) if math.isnan(bound) else bound


def _value(row: Record, name: str) -> float:
    value: Any = row.get(name)
    return math.nan if missing(value) else float(value)


def advise_all(runs: Sequence[RunFolder], limits: Limits, model: str | None = None) -> list[tuple[RunFolder, Advice]]:
    """Advice of several runs."""
    return [(run, found) for run in runs for found in advise(run, limits, model)]

"""What a figure sees: the summary tables of one model, nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aggregate.figures.style import Look, label, looks
from aggregate.latency import beside
from aggregate.private import scrub
from aggregate.tables import read_latency, read_table
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import DEFAULT_TARGETS

#: Values that go without saying: what a study gets that asks for nothing else.
_USUAL = {
    "options": "{}",
    "allocation": "default",
    "targets": "+".join(DEFAULT_TARGETS),
    "refit": False,
    "true_sequential": False,
}

#: The sparsity of the old study: figures that show one sparsity take the measured one nearest to it.
SHOWN_SPARSITY = 0.3

#: Bars a reader can still compare.
MOST_SPARSITIES = 6


def missing(value: Any) -> bool:
    """Whether a table has no value there."""
    return value is None or value is pd.NA or value != value


#: One row of a table.
Record: TypeAlias = dict[str, Any]


def records(frame: pd.DataFrame) -> list[Record]:
    """Rows of a table by column name."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


#: What figures never mix: one model, one machine kind, one text.
SUBJECT_AXES = (
    "model",
    "dtype",
    "revision",
    "device",
    "evaluation_corpus",
    "evaluation_windows",
    "evaluation_window_tokens",
)

#: Everything that makes two ways of pruning different, apart from sparsity, variant and calibration seed.
COMBINATION_AXES = (
    "method",
    "pattern",
    "options",
    "allocation",
    "targets",
    "refit",
    "true_sequential",
    "calibration_corpus",
    "calibration_windows",
    "calibration_window_tokens",
    "seed",
)


class Subject(NamedTuple):
    """One model in one dtype, revision, device and text: figures never mix two.

    Parameters
    ----------
    model, dtype
        As in the tables.
    extra
        What tells it from another subject of the run with the same model and dtype; empty where there is none.
    """

    model: str
    dtype: str
    extra: str = ""

    @property
    def title(self) -> str:
        """For headings of figures."""
        return " · ".join(part for part in (label(self.model), self.dtype, label(self.extra)) if part)

    @property
    def slug(self) -> str:
        """For file names: letters, digits and a digest where the name holds anything else."""
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", scrub(self.model)).strip("-.")[:40]
        whole = self.model + (f" {self.extra}" if self.extra else "")
        digest = "" if plain == whole else f"-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
        return f"{plain or 'model'}{digest}-{self.dtype}"


@dataclass(frozen=True)
class Combination:
    """One way of pruning, whatever sparsity, variant and calibration seed.

    Parameters
    ----------
    values
        Of `COMBINATION_AXES`.
    extra
        What tells it from other combinations of this method and pattern, in words; usual values go without saying.
    """

    values: tuple[Any, ...]
    extra: str

    @property
    def method(self) -> str:
        """Pruning method."""
        return str(self.values[0])

    @property
    def pattern(self) -> str:
        """Pattern of zeros."""
        return str(self.values[1])

    @property
    def words(self) -> str:
        """For sentences: ``wanda (unstructured, refit)``."""
        return f"{self.method} ({', '.join(part for part in (self.pattern, self.extra) if part)})"

    @property
    def label(self) -> str:
        """For legends."""
        return " ".join(part for part in (self.method, self.pattern, self.extra) if part)

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of a table that holds all axes."""
        return matching(frame, dict(zip(COMBINATION_AXES, self.values, strict=True)))


def matching(frame: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    """Rows with these values; missing equals missing."""
    chosen = pd.Series(True, index=frame.index)
    for name, value in wanted.items():
        chosen &= frame[name].isna() if missing(value) else frame[name] == value
    return frame[chosen]


def axis_words(name: str, value: Any) -> str:
    """An axis and its value as a reader wants them."""
    if name == "refit":
        return "refit" if value else "no refit"
    if name == "true_sequential":
        return "layer statistics once" if missing(value) else "true sequential"
    if name == "options":
        options = json.loads(value)
        return " ".join(f"{key}={option}" for key, option in options.items()) or "default options"
    if missing(value):
        return f"no {name.replace('_', ' ')}"
    text = f"{value:.0f}" if isinstance(value, float) else str(value)
    return f"{name.replace('_', ' ')} {text}"


def extra_columns(table: pd.DataFrame) -> list[str]:
    """Axes that vary in a ``global`` table and that its readers would otherwise not see."""
    pruned = table[table["method"] != "none"]
    return [*varying(table, SUBJECT_AXES[2:]), *varying(pruned, COMBINATION_AXES[2:])]


def varying(frame: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Axes of which a table holds more than one value."""
    return [name for name in axes if frame[name].nunique(dropna=False) > 1]


@dataclass(frozen=True)
class ModelData:
    """Tables of one model in one dtype, convention ``unique``."""

    subject: Subject
    table: pd.DataFrame
    groups: pd.DataFrame
    tensors: pd.DataFrame
    tipping: pd.DataFrame
    pareto: pd.DataFrame
    latency: pd.DataFrame
    looks: dict[str, Look]
    bins: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    seeds: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)

    @cached_property
    def trained(self) -> bool:
        """False where any of its cells has random weights."""
        return bool(self.table["trained"].all())

    @cached_property
    def dense(self) -> pd.DataFrame:
        """Row of the dense reference; empty if it was not measured."""
        return self.table[(self.table["method"] == "none") & (self.table["variant"] == "dense")].head(1)

    @cached_property
    def pruned(self) -> pd.DataFrame:
        """Rows of everything that was pruned."""
        return self.table[self.table["method"] != "none"]

    @cached_property
    def sparsities(self) -> list[float]:
        """Requested sparsities, ascending."""
        return sorted(self.pruned["sparsity_target"].unique())

    @cached_property
    def variants(self) -> list[str]:
        """Variants in the order of the plan."""
        return list(dict.fromkeys(self.table["variant"]))

    @cached_property
    def bin_places(self) -> Mapping[str, NDArray[np.intp]]:
        """Places of the rows of every cell in the table of bins."""
        if self.bins.empty:
            return {}
        found = self.bins.groupby("cell_id", sort=False).indices
        return {str(cell): np.asarray(places) for cell, places in found.items()}

    @cached_property
    def methods(self) -> list[Combination]:
        """Ways of pruning in the order of the plan."""
        rows = records(self.pruned[list(COMBINATION_AXES)].drop_duplicates())
        short, full = [], []
        for row in rows:
            same = matching(self.pruned, {"method": row["method"], "pattern": row["pattern"]})
            varied = varying(same, COMBINATION_AXES[2:])
            telling = [name for name in varied if same[name].nunique() > 1 or name in _USUAL]
            telling = [name for name in telling if not missing(row[name]) and row[name] != _USUAL.get(name)]
            short.append((row["method"], row["pattern"], ", ".join(axis_words(name, row[name]) for name in telling)))
            full.append(", ".join(axis_words(name, row[name]) for name in varied))
        times = Counter(short)
        return [
            # Words that two ways of pruning share tell nothing: then every axis that varies is named.
            Combination(tuple(row.values()), one[2] if times[one] == 1 else every)
            for row, one, every in zip(rows, short, full, strict=True)
        ]

    def some_sparsities(self, most: int = MOST_SPARSITIES) -> list[float]:
        """At most so many sparsities, spread evenly, the shown one among them."""
        found = self.sparsities
        if len(found) <= most:
            return found
        step = (len(found) - 1) / (most - 1)
        chosen = {found[round(index * step)] for index in range(most)}
        nearest = self.shown_sparsity
        if nearest is not None and nearest not in chosen:
            chosen.remove(min(chosen, key=lambda s: abs(s - nearest)))
            chosen.add(nearest)
        return sorted(chosen)

    @cached_property
    def shown_sparsity(self) -> float | None:
        """The measured sparsity nearest to 30 %."""
        return min(self.sparsities, key=lambda s: (abs(s - SHOWN_SPARSITY), s), default=None)

    @cached_property
    def first_method(self) -> Combination | None:
        """The study's first way of pruning, for figures that show one."""
        return self.methods[0] if self.methods else None

    def of_method(self, frame: pd.DataFrame, method: Combination) -> pd.DataFrame:
        """Rows of one way of pruning, one cell a variant and sparsity (the first calibration seed)."""
        first = method.rows(self.pruned).drop_duplicates(["sparsity_target", "variant"])
        return frame[frame["cell_id"].isin(set(first["cell_id"]))]

    def over_seeds(self, method: Combination, metric: str) -> pd.DataFrame:
        """A figure of one way of pruning by variant and sparsity: mean over calibration seeds, and its bounds.

        Columns ``variant, sparsity_target, value, lo, hi, seeds, interval``: the bounds are those of the 95 % interval
        (``interval``) where there is one for one seed or for many, and the smallest and the largest value of a few.
        The mean of perplexity is the geometric one: nats are averaged, and exponentiated last.
        """
        rows = method.rows(self.pruned)
        rows = rows[rows[metric].notna()]
        bounds = [f"{metric}_{side}" if f"{metric}_{side}" in rows else metric for side in ("lo", "hi")]
        columns = ["variant", "sparsity_target", "value", "lo", "hi", "seeds", "interval"]
        known = {}
        if len(self.seeds):
            many = method.rows(self.seeds[(self.seeds["metric"] == metric) & self.seeds["mean_lo"].notna()])
            known = {(one["variant"], one["sparsity_target"]): one for one in records(many)}
        found = []
        for (variant, sparsity), part in rows.groupby(["variant", "sparsity_target"], sort=False):
            values, one, s = part[metric], part.iloc[0], float(str(sparsity))
            mean = math.exp(np.log(values).mean()) if metric == "perplexity" else float(values.mean())
            lo, hi, interval = values.min(), values.max(), False
            if len(part) == 1:
                interval = bounds[0] != metric and not missing(one[bounds[0]])
                mean = float(values.iloc[0])
                lo, hi = (one[bounds[0]], one[bounds[1]]) if interval else (math.nan, math.nan)
            elif (variant, s) in known:
                lo, hi, interval = known[variant, s]["mean_lo"], known[variant, s]["mean_hi"], True
            found.append((variant, s, mean, lo, hi, len(part), interval))
        return pd.DataFrame(found, columns=columns).sort_values("sparsity_target", kind="stable")


def load(run: RunFolder) -> list[ModelData]:
    """Tables of every subject of a run, in plan order."""
    whole, groups, tensors = (_unique(read_table(run, name).to_pandas()) for name in ("global", "groups", "tensors"))
    tipping, pareto = (read_table(run, name).to_pandas() for name in ("tipping", "pareto"))
    # A run without behaviour, or one that an earlier release aggregated, has no such table.
    path = run.tables / "bins.parquet"
    bins = read_table(run, "bins").to_pandas() if path.is_file() else pd.DataFrame()
    seeds = read_table(run, "seeds").to_pandas()
    times = read_latency(run)
    whole = beside(whole, times)
    latency = pd.DataFrame(columns=list(SUBJECT_AXES)) if times is None else times
    variants = looks(whole["variant"])
    models = []
    for row in records(whole[list(SUBJECT_AXES)].drop_duplicates()):
        same = matching(whole, {"model": row["model"], "dtype": row["dtype"]})
        words = [axis_words(name, row[name]) for name in varying(same, SUBJECT_AXES[2:])]
        table = matching(whole, row).reset_index(drop=True)
        cells = set(table["cell_id"])
        models.append(
            ModelData(
                Subject(row["model"], row["dtype"], ", ".join(words)),
                table,
                groups[groups["cell_id"].isin(cells)].reset_index(drop=True),
                tensors[tensors["cell_id"].isin(cells)].reset_index(drop=True),
                tipping=matching(tipping, row).reset_index(drop=True),
                pareto=pareto[pareto["cell_id"].isin(cells)].reset_index(drop=True),
                latency=matching(latency, row).reset_index(drop=True),
                looks=variants,
                bins=bins[bins["cell_id"].isin(cells)].reset_index(drop=True) if len(bins) else bins,
                seeds=matching(seeds, row).reset_index(drop=True),
            )
        )
    return models


def _unique(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the convention that figures show; cells without structure rows have none."""
    return frame[frame["convention"] != "study"]

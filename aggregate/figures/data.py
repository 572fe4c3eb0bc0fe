"""What a figure sees: the summary tables of one model, nothing else."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import pandas as pd

from aggregate.figures.style import Look, label, looks
from aggregate.tables import read_table
from sparsehpc.core.layout import RunFolder

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


class Subject(NamedTuple):
    """One model in one dtype: figures never mix two."""

    model: str
    dtype: str

    @property
    def title(self) -> str:
        """For headings of figures."""
        return f"{label(self.model)} · {self.dtype}"

    @property
    def slug(self) -> str:
        """For file names: letters, digits and a digest where the name holds anything else."""
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", self.model).strip("-.")[:40]
        digest = "" if plain == self.model else f"-{hashlib.sha256(self.model.encode()).hexdigest()[:6]}"
        return f"{plain or 'model'}{digest}-{self.dtype}"


@dataclass(frozen=True)
class ModelData:
    """Tables of one model in one dtype, convention ``unique``."""

    subject: Subject
    table: pd.DataFrame
    groups: pd.DataFrame
    tensors: pd.DataFrame
    tipping: pd.DataFrame
    pareto: pd.DataFrame
    looks: dict[str, Look]

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
    def methods(self) -> list[tuple[str, str]]:
        """Method and pattern in the order of the plan."""
        return list(dict.fromkeys(zip(self.pruned["method"], self.pruned["pattern"], strict=True)))

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
    def first_method(self) -> tuple[str, str] | None:
        """The study's first method and pattern, for figures that show one."""
        return self.methods[0] if self.methods else None

    def of_method(self, frame: pd.DataFrame, method: tuple[str, str]) -> pd.DataFrame:
        """Rows of one method and pattern, one row a variant and sparsity (the first seed and options)."""
        rows = frame[(frame["method"] == method[0]) & (frame["pattern"] == method[1])]
        return rows[rows["cell_id"].isin(self._first_cells(method))]

    def _first_cells(self, method: tuple[str, str]) -> set[str]:
        rows = self.table[(self.table["method"] == method[0]) & (self.table["pattern"] == method[1])]
        return set(rows.drop_duplicates(["sparsity_target", "variant"])["cell_id"])


def load(run: RunFolder) -> list[ModelData]:
    """Tables of every model of a run, in plan order."""
    whole, groups, tensors = (_unique(read_table(run, name).to_pandas()) for name in ("global", "groups", "tensors"))
    tipping, pareto = (read_table(run, name).to_pandas() for name in ("tipping", "pareto"))
    variants = looks(whole["variant"])
    subjects = dict.fromkeys(Subject(*pair) for pair in zip(whole["model"], whole["dtype"], strict=True))
    return [
        ModelData(
            subject,
            _of(whole, subject),
            _of(groups, subject),
            _of(tensors, subject),
            _of(tipping, subject),
            _of(pareto, subject),
            variants,
        )
        for subject in subjects
    ]


def _unique(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the convention that figures show; cells without structure rows have none."""
    return frame[frame["convention"] != "study"]


def _of(frame: pd.DataFrame, subject: Subject) -> pd.DataFrame:
    return frame[(frame["model"] == subject.model) & (frame["dtype"] == subject.dtype)].reset_index(drop=True)

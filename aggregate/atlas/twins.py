"""The old study's six plots beside their corrected twins: what its accounting shows, and each stored byte once.

Counts are those of OPT-125M's shape, the old study's first model, and do not depend on what its weights are; agreement
does, and is that of the trained model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from aggregate.atlas.select import SHARED, of, table_of
from aggregate.figures.data import missing, records
from aggregate.figures.style import BLACK, BLUE, MIB, VERMILLION, number, percent
from aggregate.tables import read_table
from sparsehpc.core import schema
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[str, RunFolder]

CONVENTIONS = {"study": "old accounting", "unique": "corrected"}
#: What the old study compared, at its one sparsity.
VARIANTS = {"dense": BLACK, "masked": BLUE, "csr": VERMILLION}
SPARSITY = 0.3

#: In the order of the page.
NAMES = ("size", "sparsity", "groups", "shares", "flops", "agreement")

_SHAPE, _TRAINED, _OPT = "reference-untrained", "storage", "opt-125m"


class Bar(NamedTuple):
    """Height of a bar and its 95 % interval, NaN where it has none."""

    value: float
    lo: float = math.nan
    hi: float = math.nan


class Twin(NamedTuple):
    """One of the six plots.

    Parameters
    ----------
    title
        What it shows, of which model, in which unit.
    bars
        Bars by convention, group (empty where it has none) and variant.
    """

    title: str
    bars: Mapping[tuple[str, str, str], Bar]

    def total(self, convention: str, variant: str) -> float:
        """Sum over the groups."""
        return sum(bar.value for key, bar in self.bars.items() if (key[0], key[2]) == (convention, variant))

    def value(self, convention: str, variant: str, group: str = "") -> float:
        """Height of a bar, for a sentence."""
        return self.bar(convention, variant, group).value

    def bar(self, convention: str, variant: str, group: str = "") -> Bar:
        """One bar; a sentence that names one that is not there is a mistake in the page."""
        if (convention, group, variant) not in self.bars:
            words = " ".join(word for word in (convention, variant, group) if word)
            raise UserError(f"a sentence names a bar that is not there: {words} of {self.title}")
        return self.bars[convention, group, variant]


def twins(runs: Runs) -> dict[str, Twin]:
    """All six by name; none where a run that they need is not there."""
    if not {_SHAPE, _TRAINED} <= set(runs):
        return {}
    whole = _shown(table_of(runs, _SHAPE, both=True), _OPT)
    groups = _shown(read_table(runs[_SHAPE], "groups").to_pandas(), _OPT)
    trained = _shown(table_of(runs, _TRAINED, both=True))
    if whole.empty or groups.empty or trained.empty:
        return {}
    shape = "OPT-125M's shape, float32"
    model = SHARED.get(str(trained["model"].iloc[0]), str(trained["model"].iloc[0]))
    at = percent(SPARSITY)
    return {
        "size": Twin(f"Size (MiB) · {shape}, {at}", _whole(whole, "bytes_total", 1 / MIB)),
        "sparsity": Twin(f"Zeros in the whole model (%) · {shape}, {at}", _whole(whole, "sparsity", 100)),
        "groups": Twin(f"Zeros that pruning made, by group (%) · {shape}, {at}", _made(groups)),
        "shares": Twin(f"Share of the parameters (%) · {shape}", _by_group(groups, "param_fraction", 100, ["dense"])),
        "flops": Twin(
            f"Operations per token, by group (million) · {shape}, {at}", _by_group(groups, "flops_executed", 1e-6)
        ),
        "agreement": Twin(f"Top-1 agreement with dense (%) · {model}, trained, {at}", _agreement(trained)),
    }


def draw_twin(twin: Twin) -> Figure:
    """Both accountings side by side, on one axis of values and with the same places."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 2.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (convention, words) in zip(panels, CONVENTIONS.items(), strict=True):
        _panel(axes, twin, convention)
        axes.set_title(f"{words} ({convention})", loc="left", fontsize=9)
    panels[0].set_ylim(0, 1.14 * max(bar.value for bar in twin.bars.values()))
    figure.suptitle(twin.title, x=0.01, ha="left", fontsize=10)
    return figure


def _panel(axes: Axes, twin: Twin, convention: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    groups, variants = (list(dict.fromkeys(key[n] for key in twin.bars)) for n in (1, 2))
    grouped, beside = groups != [""], len(variants) if groups != [""] else 1
    places, width = (groups if grouped else variants), 0.84 / beside if beside > 1 else 0.6
    for (own, group, variant), bar in twin.bars.items():
        if own != convention:
            continue
        shift = (variants.index(variant) - (beside - 1) / 2) * width if beside > 1 else 0.0
        x = places.index(group or variant) + shift
        axes.bar(x, bar.value, width, color=VARIANTS[variant], label=variant if group == groups[0] else None)
        spread = None if math.isnan(bar.lo) else [[bar.value - bar.lo], [bar.hi - bar.value]]
        if spread:
            axes.errorbar(x, bar.value, spread, color="#222222", capsize=5, linewidth=1.2)
        place = (x, bar.hi if spread else bar.value)
        size = 5.0 if beside > 2 else 6.5
        axes.annotate(
            number(bar.value, 3),
            place,
            xytext=(0, 3 if spread else 1),
            textcoords="offset points",
            ha="center",
            fontsize=size,
        )
    axes.set_xticks(range(len(places)), places, fontsize=8)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.tick_params(axis="y", labelsize=8)
    if beside > 1:
        axes.legend(fontsize=7, frameon=False, ncols=beside)


def _shown(table: pd.DataFrame, model: str = "") -> pd.DataFrame:
    """The old study's three models."""
    if table.empty:
        return table
    rows = table[table["model"].str.contains(model, regex=False) & table["variant"].isin(VARIANTS)]
    plain = rows["pattern"].isin(["none", "unstructured"]) & (rows["targets"] == "attention+mlp") & ~rows["refit"]
    magnitude = (rows["method"] == "magnitude") & (rows["sparsity_target"] == SPARSITY)
    return rows[plain & (magnitude | (rows["method"] == "none"))]


def _whole(table: pd.DataFrame, column: str, scale: float) -> dict[tuple[str, str, str], Bar]:
    return {
        (row["convention"], "", row["variant"]): Bar(scale * row[column])
        for convention in CONVENTIONS
        for variant in VARIANTS
        for row in records(of(table, convention=convention, variant=variant))
    }


def _by_group(
    groups: pd.DataFrame, column: str, scale: float, variants: list[str] | None = None
) -> dict[tuple[str, str, str], Bar]:
    return {
        (convention, group, variant): Bar(scale * row[column])
        for convention in CONVENTIONS
        for group in schema.GROUPS
        for variant in variants or VARIANTS
        for row in records(of(groups, convention=convention, group=group, variant=variant))
    }


def _made(groups: pd.DataFrame) -> dict[tuple[str, str, str], Bar]:
    """Zeros beyond those of the dense model: biases of untrained weights are zero before anything is pruned."""
    count = _by_group(groups, "params_total", 1.0)
    kept = _by_group(groups, "params_nonzero", 1.0)
    return {
        key: Bar(100 * (kept[key[0], key[1], "dense"].value - kept[key].value) / count[key].value)
        for key in kept
        if key[2] != "dense" and count[key].value
    }


def _agreement(table: pd.DataFrame) -> dict[tuple[str, str, str], Bar]:
    """Points in the old plot; what was measured is an estimate, and its twin says how good."""
    found = {}
    for key, bar in _whole(table, "top1_agreement", 100).items():
        (row,) = records(of(table, convention=key[0], variant=key[2]))
        bounds = [row.get(f"top1_agreement_{end}") for end in ("lo", "hi")]
        known = key[0] == "unique" and not any(missing(end) for end in bounds)
        found[key] = Bar(bar.value, *(100 * float(end) for end in bounds if end is not None)) if known else bar
    return found

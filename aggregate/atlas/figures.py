"""Figures of the results page, from copied tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from aggregate.atlas.select import SHARED, of, pruned_unstructured, table_of
from aggregate.atlas.twins import NAMES, draw_twin, twins
from aggregate.figures import _save
from aggregate.figures.perplexity import plain_ticks
from aggregate.figures.style import BLACK, BLUE, GREEN, MIB, ORANGE, PURPLE, SKY, VERMILLION, YELLOW, number
from sparsehpc.core.layout import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[str, RunFolder]

#: Colour and marker of each method, the same in every figure of the page.
_LOOKS = {
    "random": ("#999999", "v"),
    "magnitude": (VERMILLION, "o"),
    "magnitude-layerwise": (ORANGE, "s"),
    "wanda": (BLUE, "D"),
    "ria": (SKY, "^"),
    "sparsegpt": (GREEN, "P"),
    "admm": (PURPLE, "X"),
}
_FORMATS = {
    "masked": ("masked", BLUE, "o"),
    "csr": ("CSR, 32-bit indices", VERMILLION, "s"),
    "csr16": ("CSR, 16-bit indices", PURPLE, "^"),
    "bitmap": ("bitmap", GREEN, "D"),
    "auto": ("best format per matrix", BLACK, "*"),
}


def draw(runs: Runs, folder: Path) -> list[Path]:
    """Draw every figure that the runs have figures for; others in the folder are removed."""
    paired = twins(runs)
    drawn = {
        "methods": _methods(runs),
        "patterns": _patterns(runs),
        "sizes": _sizes(runs),
        **{f"twin-{name}": draw_twin(paired[name]) if name in paired else None for name in NAMES},
    }
    written = []
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            _save(figure, path)
            written.append(path)
    return written


def _panels(width: float, height: float, columns: int = 2) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns))
    for each in axes:
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
        each.grid(alpha=0.25)
    return figure, axes


def _methods(runs: Runs) -> Figure | None:
    """Perplexity and agreement against sparsity, a line a method."""
    table = pruned_unstructured(table_of(runs, "methods"))
    if table.empty:
        return None
    figure, (left, right) = _panels(11, 4.6)
    dense = float(table["perplexity_dense"].iloc[0])
    for name, (colour, marker) in _LOOKS.items():
        rows = table[table["method"] == name].sort_values("sparsity_target")
        if rows.empty:
            continue
        for axes, metric, scale in ((left, "perplexity", 1.0), (right, "top1_agreement", 100.0)):
            x = 100 * rows["sparsity_target"]
            y, low, high = (scale * rows[column] for column in (metric, f"{metric}_lo", f"{metric}_hi"))
            axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.5, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    # Nothing was measured between dense and the first sparsity, so no line leads there.
    for axes, value in ((left, dense), (right, 100.0)):
        axes.plot([0], [value], "o", color=BLACK, label="dense")
        axes.set_xlim(-3, None)
    left.axhline(dense, color="#444444", linestyle=":", linewidth=1)
    left.annotate(f"dense: {number(dense, 3)}", (0, dense), xytext=(2, -11), textcoords="offset points", fontsize=8)
    left.set_yscale("log")
    left.set_ylim(dense * 0.75, dense * 50)
    plain_ticks(left)
    left.set_title("Perplexity (lower is better; the axis ends at 50 x dense)", loc="left", fontsize=10)
    right.set_ylim(0, 102)
    right.set_title("Top-1 choices equal to the dense model's (%)", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("zeros among the prunable weights (%)")
        axes.axvline(30, color="#bbbbbb", linewidth=0.8, zorder=0)
    right.annotate("old study", (30, 100), xytext=(3, 0), textcoords="offset points", fontsize=8, color="#666666")
    right.legend(fontsize=8, frameon=False)
    figure.suptitle(f"How far {_model(table)} can be pruned", x=0.01, ha="left", fontsize=12)
    return figure


def _patterns(runs: Runs) -> Figure | None:
    """What half of the weights costs by pattern, with intervals."""
    table = of(table_of(runs, "methods"), sparsity_target=0.5, variant="masked", targets="attention+mlp", refit=False)
    table = table[table["pattern"].isin(["unstructured", "4:8", "2:4"]) & (table["allocation"] == "default")]
    if table.empty:
        return None
    patterns = [name for name in ("unstructured", "4:8", "2:4") if name in set(table["pattern"])]
    if len(patterns) < 2:
        return None
    figure, (axes,) = _single(7.5, 3.9)
    names = [name for name in _LOOKS if name in set(table["method"]) and name != "random"]
    for place, name in enumerate(names):
        colour, marker = _LOOKS[name]
        shift = (place - (len(names) - 1) / 2) * 0.12
        rows = table[table["method"] == name]
        x = [patterns.index(pattern) + shift for pattern in rows["pattern"]]
        y, low, high = (rows[column].to_numpy(float) for column in ("perplexity", "perplexity_lo", "perplexity_hi"))
        axes.errorbar(x, y, yerr=[y - low, high - y], color=colour, marker=marker, linestyle="", capsize=2, label=name)
    dense = float(table["perplexity_dense"].iloc[0])
    axes.axhline(dense, color="#444444", linestyle=":", linewidth=1, label=f"dense: {number(dense, 3)}")
    axes.set_yscale("log")
    plain_ticks(axes)
    axes.set_xticks(range(len(patterns)), patterns)
    axes.set_ylabel("perplexity")
    axes.set_title(f"Half of the weights, by pattern · {_model(table)}", loc="left", fontsize=11)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def _sizes(runs: Runs) -> Figure | None:
    """What the old count said and what is really stored; then every format over sparsity."""
    shape, formats = table_of(runs, "reference-untrained", both=True), table_of(runs, "storage")
    if shape.empty or formats.empty:
        return None
    figure, (left, right) = _panels(11, 4.2)
    bars = old_and_stored(shape)
    for place, (_, mib, colour) in enumerate(bars):
        left.barh(place, mib, color=colour, height=0.6)
        left.annotate(f"{number(mib, 5)} MiB", (mib, place), xytext=(4, 0), textcoords="offset points", va="center")
    left.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    left.invert_yaxis()
    left.set_xlim(0, 1.25 * max(mib for _, mib, _ in bars))
    left.set_xlabel("MiB")
    left.grid(visible=False)
    left.set_title("OPT-125M's shape, float32, 30 %", loc="left", fontsize=10)
    rows = formats[(formats["pattern"] == "unstructured") & (formats["method"] == "magnitude")]
    for name, (label, colour, marker) in _FORMATS.items():
        found = rows[rows["variant"] == name].sort_values("sparsity_target")
        if not found.empty:
            x, y = 100 * found["sparsity_target"], found["bytes_total"] / MIB
            # What chooses among the others lies on one of them: only its marks are drawn.
            line, size = ("", 9) if name == "auto" else ("-", 5)
            right.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=size, label=label)
    first = formats.iloc[0]
    for column, label in (
        ("bytes_dense_published", "dense bfloat16, as published"),
        ("bytes_source_file", "4-bit file"),
    ):
        if column in formats and pd.notna(first[column]):
            right.axhline(first[column] / MIB, color="#777777", linestyle=":", linewidth=1)
            right.annotate(label, (30, first[column] / MIB), xytext=(0, 3), textcoords="offset points", fontsize=8)
    right.set_ylim(0, None)
    right.set_xlabel("zeros among the prunable weights (%)")
    right.set_ylabel("MiB")
    right.set_title(f"{_model(formats)}, float32, what is stored", loc="left", fontsize=10)
    right.legend(fontsize=8, frameon=False)
    return figure


def old_and_stored(shape: pd.DataFrame) -> list[tuple[str, float, str]]:
    """Bars of sizes in MiB: what the old count gives, and all arrays."""
    opt = shape[shape["model"].str.contains("opt-125m")]
    found = []
    for label, variant, convention, colour in (
        ("dense", "dense", "unique", BLACK),
        ("masked", "masked", "unique", BLUE),
        ("CSR, as the old study counted", "csr", "study", YELLOW),
        ("CSR, every array", "csr", "unique", VERMILLION),
    ):
        rows = opt[(opt["variant"] == variant) & (opt["convention"] == convention)]
        if not rows.empty:
            found.append((label, float(rows["bytes_total"].iloc[0]) / MIB, colour))
    return found


def _single(width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, [axes]


def _model(table: pd.DataFrame) -> str:
    return SHARED.get(str(table["model"].iloc[0]), str(table["model"].iloc[0]))

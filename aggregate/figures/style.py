"""How every figure looks: palette, labels, marks. The same variant has the same colour everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from aggregate.private import scrub
from sparsehpc.core import schema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette: told apart with any colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)

#: Variants that come with sparsehpc keep their colour in every run; others take what is left, in name order.
_KNOWN = {
    "dense": BLACK,
    "masked": BLUE,
    "csr": VERMILLION,
    "csr-int64": ORANGE,
    "bitmap": GREEN,
    "csr16": PURPLE,
    "nm": SKY,
    "bsr": YELLOW,
    # The same colours again, told apart by the marker: no palette has more that every eye separates.
    "csc": ORANGE,
    "dense-bf16": BLACK,
    "dense-int8": BLACK,
    "dense-q4": BLACK,
    "bitmap-int8": GREEN,
    "bitmap-q4": GREEN,
}
_FREE = (SKY, PURPLE, YELLOW, GREEN, ORANGE, VERMILLION, BLUE)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_LINES = ("-", "--", "-.", ":")

#: Ways of pruning that dashes tell apart.
MOST_DASHES = len(_LINES)

#: Colours of methods, where a figure holds more of them than dashes tell apart.
METHOD_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, "#888888", "#9467BD", "#8C564B", "#7F9F1F")

GROUP_COLOURS = dict(zip(schema.GROUPS, (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY), strict=True))

#: Parts of a stored model from the ground of a bar upwards, with the hatch that tells them apart in grey.
COMPONENTS = {
    "weight": ("dense weights", ""),
    "values": ("values", ""),
    "indices": ("indices", "////"),
    "offsets": ("offsets", "xxxx"),
    "mask": ("mask", "...."),
    "scales": ("scales", "\\\\\\\\"),
    "bias": ("biases", "++++"),
}

MIB = 2**20
UNTRAINED = "untrained: random weights"
DPI = 150

#: Below this a number is written with a power of ten: nobody counts seven zeros.
SMALLEST_PLAIN = 1e-7

#: Significant digits of the ends of an interval.
_MOST_DIGITS = 6

_LONGEST_LABEL = 60
#: So many entries of a legend fit beside the lines.
_MOST_INSIDE, _ENTRY_INCHES = 16, 0.16


#: Dense sizes that stand beside every size: column, words, dashes.
SIZE_REFERENCES = (
    ("bytes_dense_float32", "dense float32", "-"),
    ("bytes_dense_published", "dense, published dtype", "--"),
    ("bytes_source_file", "source file", ":"),
    ("bytes_dense_bf16", "dense-bf16, lossy", "-."),
    ("bytes_dense_int8", "dense-int8, lossy", "-."),
    ("bytes_dense_q4", "dense-q4, lossy", "-."),
)


class Look(NamedTuple):
    """Colour and marker of a series."""

    colour: str
    marker: str


def looks(variants: Iterable[str]) -> dict[str, Look]:
    """Colour and marker of each variant, the same whatever else the run holds of the known ones."""
    names = sorted(set(variants))
    unknown = [name for name in names if name not in _KNOWN]
    colours = {**_KNOWN, **{name: _FREE[index % len(_FREE)] for index, name in enumerate(unknown)}}
    markers = [*_KNOWN, *unknown]
    return {name: Look(colours[name], _MARKERS[markers.index(name) % len(_MARKERS)]) for name in names}


def markers() -> tuple[str, ...]:
    """Markers in the order in which they are given out."""
    return _MARKERS


def line_style(index: int) -> str:
    """Dash pattern of the n-th method."""
    return _LINES[index % len(_LINES)]


def mix(colour: str, white: float) -> tuple[float, float, float]:
    """Lighten a colour towards white by a fraction."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return (red + (1 - red) * white, green + (1 - green) * white, blue + (1 - blue) * white)


def label(text: str) -> str:
    """Make a name safe to draw: no mathematics, no control or missing characters, no home folder, not too long."""
    known, text = _glyphs(), scrub(text)
    drawn = "".join(
        letter if ord(letter) in known else "\N{WHITE SQUARE}" for letter in text if letter.isprintable()
    ).replace("$", r"\$")
    return drawn if len(drawn) <= _LONGEST_LABEL else f"{drawn[: _LONGEST_LABEL - 1]}…"


def percent(fraction: float) -> str:
    """Write a fraction as people write a sparsity: 30 %, 12.5 %."""
    return f"{100 * fraction:.4g} %"


def number(value: float, digits: int = 4) -> str:
    """Write a number with so many significant digits, with a power of ten only where it is next to nothing.

    >>> number(24.8300), number(52847.31), number(0.001649), number(3.21e-12)
    ('24.83', '52,847', '0.001649', '3.2e-12')
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) < SMALLEST_PLAIN:
        return f"{value:.{min(digits, 2) - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def interval_decimals(half_width: float) -> int:
    """Decimals that show two significant digits of an interval's half width.

    >>> interval_decimals(0.151), interval_decimals(12.0), interval_decimals(0.0004)
    (2, 0, 5)
    """
    if not half_width > 0 or math.isinf(half_width):
        return 2
    return max(0, 1 - math.floor(math.log10(half_width)))


def ends(lo: float, hi: float, unit: str = "") -> str:
    """Write an interval: as many digits as its width has something to say with, and no more than anyone reads.

    >>> ends(24.1342, 25.9911), ends(0.0, 0.0), ends(91.123, 91.187, " %")
    ('[24.13, 25.99]', '[0, 0]', '[91.123, 91.187 %]')
    """
    largest = max(abs(lo), abs(hi))
    if largest < SMALLEST_PLAIN:
        return f"[{number(lo)}, {number(hi)}{unit}]"
    decimals = min(interval_decimals((hi - lo) / 2), max(0, _MOST_DIGITS - 1 - math.floor(math.log10(largest))))
    return f"[{lo:,.{decimals}f}, {hi:,.{decimals}f}{unit}]"


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def mark_untrained(figure: Figure) -> None:
    """Put the mark that every figure of an untrained model carries into the corner."""
    figure.text(
        0.995,
        0.995,
        UNTRAINED,
        ha="right",
        va="top",
        fontsize=9,
        color="white",
        bbox={"facecolor": VERMILLION, "edgecolor": "none", "pad": 3},
    )


def spread(values: Iterable[float], factor: float) -> list[float]:
    """Places for labels on a logarithmic axis: in the order given, none nearer to the one below than ``factor``.

    >>> spread([2.0, 1.0, 2.02], 1.1)
    [2.0, 1.0, 2.2]
    """
    known = list(values)
    places = dict.fromkeys(range(len(known)), 0.0)
    last = 0.0
    for index in sorted(places, key=lambda index: known[index]):
        last = places[index] = max(known[index], factor * last)
    return [places[index] for index in range(len(known))]


def speed_axis(axes: Axes, which: str) -> None:
    """Let an axis show ratios: half as fast lies as far from 1 as twice as fast."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log", base=2)
    axis.set_major_locator(FixedLocator([0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 16, 32]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def new_figure(title: str, trained: bool, *, width: float = 7.5, height: float = 4.5) -> tuple[Figure, Axes]:
    """Empty figure with a title, and the mark that every figure of an untrained model carries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if not trained:
        mark_untrained(figure)
        # Room above the title, so that the mark covers nothing.
        axes.set_title(f"\n{title}", loc="left", fontsize=11)
    return figure, axes


def add_legend(figure: Figure, axes: Axes) -> None:
    """Name the lines of a figure: among them where there are few, else below, in a figure that is so much taller."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= _MOST_INSIDE:
        axes.legend(fontsize=8, frameon=False, handlelength=4)
        return
    columns = 2
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _ENTRY_INCHES * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False, handlelength=4)

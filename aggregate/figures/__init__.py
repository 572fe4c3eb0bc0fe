"""Figures of a run as PNG and SVG, drawn from its tables alone; one module a figure."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from aggregate.figures import (
    agreement,
    flops,
    heatmap,
    pareto,
    perplexity,
    share,
    size,
    size_curve,
    sparsity,
    speed,
    time_pareto,
)
from aggregate.figures.data import ModelData, Subject, load
from aggregate.figures.style import DPI
from sparsehpc.core.files import write_atomically
from sparsehpc.core.layout import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

#: In the order of the report.
FIGURES: tuple[ModuleType, ...] = (
    speed,
    agreement,
    perplexity,
    size,
    size_curve,
    pareto,
    time_pareto,
    sparsity,
    share,
    flops,
    heatmap,
)


class Drawn(NamedTuple):
    """A figure on disk."""

    name: str
    title: str
    caption: str
    subject: Subject
    trained: bool
    png: Path
    svg: Path


def draw_figures(run: RunFolder) -> list[Drawn]:
    """Draw every figure of every model of a run into ``figures/``.

    A figure that is newer than the tables stays as it is; one that no longer belongs to the run is removed.
    """
    drawn = list(_draw(run, load(run)))
    if run.figures.is_dir():
        kept = {path for figure in drawn for path in (figure.png, figure.svg)}
        for path in run.figures.iterdir():
            if path.suffix in (".png", ".svg") and path not in kept:
                path.unlink()
    return drawn


def _draw(run: RunFolder, models: list[ModelData]) -> Iterator[Drawn]:
    tables = max((path.stat().st_mtime_ns for path in run.tables.glob("*.parquet")), default=0)
    for data in models:
        for module in FIGURES:
            stem = f"{module.NAME}-{data.subject.slug}"
            paths = [run.figures / f"{stem}.{kind}" for kind in ("png", "svg")]
            if not all(_newer(path, tables) for path in paths):
                figure = module.draw(data)
                if figure is None:
                    continue
                for path in paths:
                    _save(figure, path)
            yield Drawn(module.NAME, module.TITLE, module.CAPTION, data.subject, data.trained, *paths)


def _newer(path: Path, tables_ns: int) -> bool:
    """Whether a figure was drawn after the tables were written."""
    return path.is_file() and path.stat().st_mtime_ns > tables_ns


def _save(figure: Figure, path: Path) -> None:
    """Write a figure without date or version, so that equal tables give equal bytes."""
    import matplotlib as mpl

    kind = path.suffix.removeprefix(".")
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "sparsehpc", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))

"""Pages of results, made from the tables of finished runs.

Two steps: `keep_tables` copies what the pages draw on, small and without anything private, beside them; `render` makes
pages and figures from that copy alone. So the copy can be checked in, and anybody can make the pages again, or hold
them against their tables, without running a study.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aggregate.atlas.kept import keep_tables, kept_runs
from sparsehpc.core.layout import RunFolder

__all__ = ["keep_tables", "kept_runs", "render", "write_results"]


def write_results(folder: Path, runs: Sequence[RunFolder]) -> list[Path]:
    """Copy the tables of runs beside the pages, then make the pages.

    Parameters
    ----------
    folder
        Where ``index.md.jinja`` and ``claims.toml`` lie, and pages, ``images`` and ``data`` go.
    runs
        Aggregated runs; the copy is named as the run folder is.

    Returns
    -------
    list of Path
        The pages and figures that were written.
    """
    keep_tables(runs, folder / "data")
    return render(folder)


def render(folder: Path) -> list[Path]:
    """Make pages and figures from the copied tables."""
    from aggregate.atlas.figures import draw
    from aggregate.atlas.page import pages
    from sparsehpc.core.files import write_text

    runs = kept_runs(folder / "data")
    written = draw(runs, folder / "images")
    for name, text in pages(folder, runs, [path.stem for path in written]).items():
        write_text(folder / name, text)
        written.append(folder / name)
    return written

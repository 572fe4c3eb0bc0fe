"""The report: one offline page, and a summary to paste."""

from __future__ import annotations

import base64
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from aggregate.export import markdown
from aggregate.figures import Drawn, draw_figures
from aggregate.figures.data import Record, extra_columns, load, missing, records
from aggregate.figures.style import MIB, number, percent
from aggregate.floor import mark as floor_mark
from aggregate.latency import beside
from aggregate.private import public, scrub
from aggregate.report.bins import FLIPS, bin_rows
from aggregate.report.bins import HEADINGS as BIN_HEADINGS
from aggregate.report.comparison import comparison
from aggregate.report.costs import COST_HEADINGS, cost_rows
from aggregate.report.definitions import DEFINITIONS
from aggregate.report.facts import facts_of
from aggregate.report.phrases import interval, share
from aggregate.report.speed import SPEED_HEADINGS, speed_rows
from aggregate.report.views import views
from aggregate.scan import STATES
from aggregate.tables import read_latency, read_table
from sparsehpc.core.files import write_text
from sparsehpc.core.layout import RunFolder

#: Rows and figures that the page itself shows; the tables beside it hold everything.
MOST_ROWS = 300
MOST_FIGURES_BYTES = 2_000_000


def write_report(run: RunFolder, against: RunFolder | None = None) -> Path:
    """Write ``report/index.html`` and ``report/summary.md`` from the tables; returns the page.

    Tables that are not there are made first. The page needs no network and names no person and no place.

    Parameters
    ----------
    run
        The run folder.
    against
        Another run that this one is compared with, in a section of its own.
    """
    if not (run.tables / "global.parquet").is_file():
        from aggregate.api import aggregate_run

        aggregate_run(run, figures=False)
    content = _content(run)
    content["comparison"] = None if against is None else comparison(against, run, MOST_ROWS)
    content["views"] = markupsafe.Markup(content["views"])  # noqa: S704 - escaped by `views`
    content["plotly"] = markupsafe.Markup(_plotly())  # noqa: S704 - a script of the package
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aggregate.report", "templates"),
        autoescape=jinja2.select_autoescape(["html.jinja", "html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = markdown
    page = run.report / "index.html"
    write_text(page, environment.get_template("page.html.jinja").render(content))
    write_text(run.report / "summary.md", environment.get_template("summary.md.jinja").render(content))
    return page


def _plotly() -> str:
    """Plotly's script; nothing in it ends the script element it stands in."""
    return (
        (resources.files("plotly") / "package_data" / "plotly.min.js")
        .read_text(encoding="utf-8")
        .replace("</script", "<\\/script")
    )


def _content(run: RunFolder) -> dict[str, Any]:
    times = read_latency(run)
    whole = beside(read_table(run, "global").to_pandas(), times)
    coverage = read_table(run, "coverage").to_pandas()
    figures = draw_figures(run)
    shown = _within_budget(figures)
    counts = coverage["state"].value_counts()
    absent = coverage[coverage["state"] != "done"]
    rows = whole[whole["convention"] != "study"]
    models = load(run)
    groups = read_table(run, "groups").to_pandas()
    columns = _columns(rows)
    binned, more_bins = bin_rows(models)
    drawn = views(models, whole, groups)
    return {
        "title": _study_name(run),
        "expected": len(coverage),
        "counts": {state: int(counts.get(state, 0)) for state in STATES},
        "absent": [_absent(row) for row in records(absent.head(MOST_ROWS))],
        "absent_left": max(0, len(absent) - MOST_ROWS),
        "models": facts_of(models, whole[whole["convention"] == "study"]),
        "untrained": sorted(set(rows.loc[~rows["trained"].astype(bool), "model"].map(scrub))),
        "headings": [heading for heading, _ in columns],
        "rows": [[_cell(row, spec) for _, spec in columns] for row in records(rows.head(MOST_ROWS))],
        "rows_left": max(0, len(rows) - MOST_ROWS),
        "bin_headings": [*BIN_HEADINGS, *FLIPS],
        "bin_rows": binned,
        "more_bins": more_bins,
        "figures": [_figure(figure) for figure in shown],
        "figures_left": [_figure_title(figure) for figure in figures if figure not in shown],
        "views": drawn.text,
        "views_cut": drawn.cut,
        "speed_headings": SPEED_HEADINGS,
        "speed": [] if times is None else speed_rows(times),
        "speed_left": 0 if times is None else max(0, len(times) - MOST_ROWS),
        "cost_headings": COST_HEADINGS,
        "costs": cost_rows(read_table(run, "costs").to_pandas()),
        "definitions": DEFINITIONS,
        "provenance": public(_json(run.provenance)),
        "study_text": scrub(run.study.read_text(encoding="utf-8")) if run.study.is_file() else "",
        "scrub": scrub,
    }


def _study_name(run: RunFolder) -> str:
    try:
        return str(tomllib.loads(run.study.read_text(encoding="utf-8"))["study"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return run.root.name


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"provenance": "the file provenance.json is missing or cannot be read"}
    return found if isinstance(found, dict) else {}


def _within_budget(figures: list[Drawn]) -> list[Drawn]:
    """The figures that the page can hold, in their order; one that is too large by itself keeps no other out."""
    left, kept = MOST_FIGURES_BYTES, []
    for figure in figures:
        size = figure.svg.stat().st_size
        if size <= left:
            left -= size
            kept.append(figure)
    return kept


def _figure(figure: Drawn) -> dict[str, Any]:
    data = base64.b64encode(figure.svg.read_bytes()).decode()
    model, kind, mark = _whose(figure)
    return {
        "source": f"data:image/svg+xml;base64,{data}",
        "file": f"../figures/{figure.png.name}",
        "alt": f"{figure.title} of {model} in {kind}{mark}",
        "title": _figure_title(figure),
        "caption": figure.caption,
    }


def _whose(figure: Drawn) -> tuple[str, str, str]:
    """Model, dtype and further axes, and what marks it as untrained."""
    kind = ", ".join(part for part in (figure.subject.dtype, scrub(figure.subject.extra)) if part)
    return scrub(figure.subject.model), kind, "" if figure.trained else " (untrained: random weights)"


def _figure_title(figure: Drawn) -> str:
    model, kind, mark = _whose(figure)
    return f"{figure.title}: {model}, {kind}{mark}"


def _absent(row: Record) -> dict[str, str]:
    return {
        "what": scrub(" ".join((*(str(row[key]) for key in _WHAT), percent(row["sparsity_target"])))),
        "state": str(row["state"]),
        "why": scrub(": ".join(part for part in (row["cause"], row["reason"]) if part)) or "not run yet",
        "cell_id": str(row["cell_id"]),
    }


_WHAT = ("model", "dtype", "variant", "method", "pattern")

#: Columns of the headline table: heading, and (column, how it is written).
_COLUMNS: tuple[tuple[str, tuple[str, str]], ...] = (
    ("model", ("model", "text")),
    ("dtype", ("dtype", "text")),
    ("method", ("method", "text")),
    ("pattern", ("pattern", "text")),
    ("sparsity asked", ("sparsity_target", "percent")),
    ("variant", ("variant", "text")),
    ("seed", ("calibration_seed", "count")),
    ("sparsity reached, prunable", ("sparsity_prunable", "share")),
    ("sparsity, whole model", ("sparsity", "share")),
    ("size (MiB)", ("bytes_total", "mib")),
    ("size / dense", ("bytes_ratio", "number")),
    ("MFLOPs per token executed", ("flops_executed", "mega")),
    ("top-1 agreement", ("top1_agreement", "share")),
    ("KL (nats)", ("kl", "number")),
    ("perplexity", ("perplexity", "number")),
    ("dense perplexity", ("perplexity_dense", "number")),
    ("bits per byte", ("bits_per_byte", "number")),
    ("lost", ("dense_only_right", "whole")),
    ("won", ("variant_only_right", "whole")),
    ("mark", ("mark", "mark")),
)


#: The same of cells that were timed too; before the marks.
_TIMED: tuple[tuple[str, tuple[str, str]], ...] = (
    ("x as fast as dense", ("speedup", "number")),
    ("ms per token", ("decode_s_per_token", "milli")),
)


def _columns(rows: pd.DataFrame) -> list[tuple[str, tuple[str, str]]]:
    """Columns of the headline table, with every further axis that varies in this run."""
    place = next(number for number, (_, (name, _)) in enumerate(_COLUMNS) if name == "sparsity_target")
    extra = [(name.replace("_", " "), (name, "text")) for name in extra_columns(rows)]
    timed = _TIMED if "speedup" in rows else ()
    return [*_COLUMNS[:place], *extra, *_COLUMNS[place:-1], *timed, _COLUMNS[-1]]


def _cell(row: Record, spec: tuple[str, str]) -> dict[str, str]:
    column, how = spec
    value: Any = row.get(column)
    if how == "mark":
        marks = [text for text in ("" if row["trained"] else "untrained", value or "", floor_mark(row)) if text]
        return {"text": ", ".join(marks), "sort": ""}
    if missing(value):
        return {"text": "", "sort": ""}
    if how == "text":
        # pandas makes a float of a whole number as soon as another row has none.
        whole = isinstance(value, float) and value.is_integer()
        return {"text": str(int(value)) if whole else scrub(str(value)), "sort": ""}
    text = {
        "percent": lambda: percent(value),
        "share": lambda: share(value),
        "mib": lambda: f"{value / MIB:,.1f}",
        "milli": lambda: number(1e3 * value, 3),
        "mega": lambda: f"{value / 1e6:,.1f}",
        "count": lambda: f"{value:.0f}",
        "whole": lambda: f"{value:,.0f}",
        "number": lambda: number(value),
    }[how]()
    if how in ("share", "number"):
        text += interval(row, column, *((100, " %") if how == "share" else ()))
    return {"text": text, "sort": repr(float(value))}

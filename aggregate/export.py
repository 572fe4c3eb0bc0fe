"""A table to paste: Markdown, LaTeX, CSV or Parquet, with what a reader needs to cite it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from aggregate.compare import BETTER, WindowSums, not_worse_than_best
from aggregate.describe import citation, methods_paragraph
from aggregate.figures.data import Record, extra_columns, missing, records
from aggregate.figures.style import MIB, interval_decimals, number, percent
from aggregate.floor import DAGGER, DAGGER_NOTE, floor_of, is_dense_but_for_rounding
from aggregate.private import scrub, scrub_table
from aggregate.tables import TABLES, read_table
from sparsehpc.core.errors import UserError, UserErrors, unknown
from sparsehpc.core.files import write_atomically
from sparsehpc.core.layout import RunFolder

FORMATS = ("markdown", "latex", "csv", "parquet")

#: What a table shows where no columns are asked for.
DEFAULT_COLUMNS = {
    "global": [
        "model",
        "method",
        "pattern",
        "sparsity_target",
        "variant",
        "sparsity",
        "bytes_total",
        "bytes_ratio",
        "flops_executed",
        "top1_agreement",
        "kl",
        "perplexity",
        "mark",
    ],
    "groups": [
        "model",
        "method",
        "sparsity_target",
        "variant",
        "group",
        "params_total",
        "sparsity",
        "param_fraction",
        "bytes_total",
    ],
    "coverage": ["model", "method", "pattern", "sparsity_target", "variant", "state", "cause", "reason"],
    "latency": [
        "model",
        "method",
        "pattern",
        "sparsity_target",
        "variant",
        "cpu_model",
        "threads",
        "decode_s_per_token",
        "decode_s_per_token_dense",
        "speedup",
        "speedup_least",
        "speedup_most",
        "ceiling_speedup",
        "perplexity",
    ],
    "tipping": [
        "model",
        "method",
        "pattern",
        "variant",
        "metric",
        "tolerance",
        "answer",
        "sparsity_within",
        "sparsity_beyond",
        "sparsity_estimate",
    ],
}

#: Units that are written another way than they are stored: name, divisor.
_UNITS = {"bytes": ("MiB", MIB), "flops": ("MFLOPs", 1e6), "weights": ("M", 1e6)}
_PERCENT = (
    "sparsity",
    "sparsity_prunable",
    "param_fraction",
    "top1_agreement",
    "accuracy",
    "accuracy_dense",
    "break_share_two_pieces",
)
_TARGETS = (
    "sparsity_target",
    "sparsity_within",
    "sparsity_beyond",
    "sparsity_estimate",
    "break_sparsity",
    "break_lo",
    "break_hi",
)
_DIGITS = 4

#: Figures are compared within these: one model, one text, one sparsity.
_COMPARED = ["model", "revision", "dtype", "device", "evaluation_corpus", "evaluation_windows", "sparsity_target"]


def export_table(
    run: RunFolder,
    *,
    kind: str = "markdown",
    table: str = "global",
    columns: Sequence[str] = (),
    convention: str = "unique",
    out: Path | None = None,
) -> str:
    """A summary table in another format.

    Parameters
    ----------
    run
        The run folder.
    kind
        ``markdown``, ``latex``, ``csv`` or ``parquet``.
    table
        Name of a summary table.
    columns
        Which columns, in this order; empty for the usual ones (Markdown, LaTeX) or all (CSV, Parquet).
    convention
        ``unique`` or ``study``; rows of tables without conventions all stay.
    out
        File to write; required for Parquet.

    Returns
    -------
    str
        The text, or the path that was written.

    Raises
    ------
    UserError
        Unknown table, format or columns, all at once.
    """
    problems = []
    if kind not in FORMATS:
        problems.append(unknown("format", kind, FORMATS))
    if table not in TABLES:
        problems.append(unknown("table", table, TABLES))
    if convention not in ("unique", "study"):
        problems.append(unknown("convention", convention, ("unique", "study")))
    if kind == "parquet" and out is None:
        problems.append("parquet is a binary format: name a file with --out FILE")
    if problems:
        raise UserErrors("the table cannot be exported", problems)
    source = read_table(run, table)
    if absent := [name for name in columns if name not in source.column_names]:
        raise UserErrors(
            "the table cannot be exported", [unknown("column", name, source.column_names) for name in absent]
        )
    if "convention" in source.column_names:
        source = source.filter(pc.is_in(source["convention"], value_set=pa.array([convention, ""])))
    if kind in ("csv", "parquet"):
        return _plain(scrub_table(source.select(list(columns) or source.column_names)), kind, out)
    usual = [name for name in DEFAULT_COLUMNS.get(table, source.column_names) if name in source.column_names]
    if table == "global":
        place = usual.index("sparsity_target")
        frame = source.to_pandas()
        # Seeds that differ are lines that nothing else tells apart.
        seeds = ["calibration_seed"] if frame["calibration_seed"].nunique() > 1 else []
        usual[place:place] = [*extra_columns(frame), *seeds]
    text = _pretty(run, source, list(columns) or usual, kind, table)
    if out is None:
        return text
    write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))
    return str(out)


def _plain(table: pa.Table, kind: str, out: Path | None) -> str:
    if kind == "csv" and out is None:
        buffer = io.BytesIO()
        pa_csv.write_csv(table, buffer)
        return buffer.getvalue().decode("utf-8")
    if out is None:
        raise UserError("name a file", "--out FILE")
    write_atomically(out, lambda path: (pq.write_table if kind == "parquet" else pa_csv.write_csv)(table, path))
    return str(out)


def _pretty(run: RunFolder, source: pa.Table, columns: list[str], kind: str, table: str) -> str:
    frame = source.to_pandas()
    constant = {name for name in ("mark", "cause", "reason") if name in columns and not frame[name].fillna("").any()}
    columns = [name for name in columns if name not in constant]
    best = _best(run, frame, columns) if table == "global" else {}
    headings = [_heading(name, source.schema.field(name), table) for name in columns]
    body = [
        [_text(row, name, source.schema.field(name), row.get("cell_id") in best.get(name, ())) for name in columns]
        for row in records(frame)
    ]
    daggers = _add_daggers(records(frame), columns, body) if table == "global" else False
    right = [
        pa.types.is_floating(source.schema.field(n).type) or pa.types.is_integer(source.schema.field(n).type)
        for n in columns
    ]
    notes = _notes(frame, columns, bool(best)) + [DAGGER_NOTE] * daggers
    words = (methods_paragraph(run), citation(run))
    writer = _markdown if kind == "markdown" else _latex
    return writer(headings, body, right, notes, words)


def _add_daggers(rows: list[Record], columns: list[str], body: list[list[tuple[str, str, bool]]]) -> bool:
    """Mark figures that cannot be told from the dense model's; whether there are any."""
    found = False
    for row, line in zip(rows, body, strict=True):
        for place, name in enumerate(columns):
            if is_dense_but_for_rounding(name, row):
                text, interval, bold = line[place]
                line[place] = (f"{text} {DAGGER}", interval, bold)
                found = True
    return found


def _best(run: RunFolder, frame: pd.DataFrame, columns: list[str]) -> dict[str, set[str]]:
    """By column: cells that cannot be told from the best of their model, text and sparsity; dense has no rival."""
    sums = WindowSums(read_table(run, "windows").to_pandas())
    pruned = frame[frame["method"] != "none"]
    best: dict[str, set[str]] = {}
    for name in columns:
        if name not in BETTER:
            continue
        for _, rows in pruned.groupby(_COMPARED, dropna=False):
            if len(rows) > 1:
                cells = list(zip(rows["cell_id"], rows[name].astype(float), strict=True))
                floor = max(floor_of(name, row) for row in records(rows))
                best.setdefault(name, set()).update(not_worse_than_best(name, cells, sums, floor))
    return best


#: Of what a row of a table tells the zeros.
_PART = {"groups": "group", "layers": "layer", "tensors": "tensor"}


def _heading(name: str, field: pa.Field, table: str) -> str:
    text = {
        "sparsity_target": "sparsity",
        "sparsity": f"zeros, {_PART.get(table, 'whole model')}",
        "sparsity_prunable": "zeros, prunable",
    }.get(name, name.replace("_", " "))
    if name in _PERCENT or name in _TARGETS:
        return f"{text} (%)"
    unit = (field.metadata or {}).get(b"unit", b"").decode()
    unit = _UNITS[unit][0] if unit in _UNITS else unit
    return text if unit in ("", "1") else f"{text} ({unit})"


def _scale(name: str, field: pa.Field) -> float:
    if name in _PERCENT or name in _TARGETS:
        return 100.0
    unit = (field.metadata or {}).get(b"unit", b"").decode()
    return 1 / _UNITS[unit][1] if unit in _UNITS else 1.0


def _text(row: Record, name: str, field: pa.Field, bold: bool) -> tuple[str, str, bool]:
    """Figure, interval and whether it is the best, as text."""
    value: Any = row.get(name)
    if missing(value) or value == "":
        return "", "", False
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return scrub(str(value)), "", bold
    if name in _TARGETS:
        return percent(value).removesuffix(" %"), "", False
    if name == "tolerance":
        return f"{value:g}", "", False
    if pa.types.is_integer(field.type):  # pandas makes a float of it as soon as another row has none
        value = int(value)
    scale = _scale(name, field)
    lo: Any = row.get(f"{name}_lo")
    hi: Any = row.get(f"{name}_hi")
    if not missing(lo) and not missing(hi):
        decimals = interval_decimals(scale * (hi - lo) / 2)
        shown = [f"{scale * x:,.{decimals}f}" for x in (value, lo, hi)]
        return shown[0], f"[{shown[1]}, {shown[2]}]", bold
    if isinstance(value, int) and scale == 1.0:
        return f"{value:,}", "", bold
    return number(scale * value, _DIGITS), "", bold


def _notes(frame: pd.DataFrame, columns: list[str], bold: bool) -> list[str]:
    notes = []
    if any(f"{name}_lo" in frame and frame[f"{name}_lo"].notna().any() for name in columns):
        notes.append("Brackets: 95 % intervals, studentised bootstrap over evaluation windows, paired with dense.")
    if bold:
        notes.append(
            "Bold: cannot be told from the best of the same model and sparsity (paired over windows; counts exactly)."
        )
    if "bytes_total" in columns:
        notes.append("MiB is 2^20 bytes; every stored array is counted.")
    if "trained" in frame and (~frame["trained"].astype(bool)).any():
        names = ", ".join(sorted(set(frame.loc[~frame["trained"].astype(bool), "model"].map(scrub))))
        notes.append(f"Untrained (random weights): {names}; behaviour of such a model says nothing about language.")
    return notes


def _markdown(
    headings: list[str],
    body: list[list[tuple[str, str, bool]]],
    right: list[bool],
    notes: list[str],
    words: tuple[str, str],
) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'|'.join(' ---: ' if r else ' --- ' for r in right)}|"]
    for row in body:
        cells = []
        for text, interval, bold in row:
            shown = markdown(text)
            cells.append(" ".join(part for part in (f"**{shown}**" if bold and shown else shown, interval) if part))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *notes, "", f"**Methods.** {markdown(words[0])}", "", "```bibtex", words[1], "```", ""]
    return "\n".join(lines)


def _latex(
    headings: list[str],
    body: list[list[tuple[str, str, bool]]],
    right: list[bool],
    notes: list[str],
    words: tuple[str, str],
) -> str:
    lines = [
        "% needs \\usepackage{booktabs}; the entry for your .bib file stands below as a comment",
        f"\\begin{{tabular}}{{{''.join('r' if r else 'l' for r in right)}}}",
        "\\toprule",
        " & ".join(latex(heading) for heading in headings) + " \\\\",
        "\\midrule",
    ]
    for row in body:
        cells = []
        for text, interval, bold in row:
            shown = f"\\textbf{{{latex(text)}}}" if bold and text else latex(text)
            cells.append(f"{shown} {{\\scriptsize {latex(interval)}}}" if interval else shown)
        lines.append(" & ".join(cells) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", ""]
    if notes:
        lines += ["", f"{{\\footnotesize {' '.join(latex(note) for note in notes)}\\par}}"]
    lines += [
        "",
        f"\\paragraph{{Methods.}} {latex(words[0])}",
        "",
        *(f"% {line}" for line in words[1].splitlines()),
        "",
    ]
    return "\n".join(lines)


def markdown(text: str) -> str:
    """Keep a name from being read as markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def latex(text: str) -> str:
    r"""Keep a name from being read as a command.

    >>> latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))

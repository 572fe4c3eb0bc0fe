"""Pages that are made from the code each time the documentation is built, so that they cannot fall behind it.

``conf.py`` calls `write_pages`. Every registered method, format, metric and corpus, every column of the two tables,
every shipped study and every verb of the command line appears here without another edit.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from sparsehpc.core import schema
from sparsehpc.core.spec import DTYPE_BYTES, DTYPES
from sparsehpc.formats.base import FORMATS, Format
from sparsehpc.metrics.base import METRICS
from sparsehpc.pruning.base import METHODS, Method
from sparsehpc.pruning.patterns import PATTERNS
from sparsehpc.text.base import CORPORA

_NOTE = "<!-- made by docs/generate.py from the code; edit the code -->\n\n"
#: The matrix whose sizes the page of formats shows: a projection of a 125 M-parameter model.
_ROWS, _COLUMNS = 3072, 768
_SPARSITIES = (0.3, 0.5, 0.7, 0.9)


def write_pages(folder: Path) -> list[Path]:
    """Write every page into ``folder``; pages of what no longer exists go."""
    pages = {
        "methods/index": methods_page(),
        "formats": formats_page(),
        "metrics": metrics_page(),
        "corpora": corpora_page(),
        "columns": columns_page(),
        "studies": studies_page(),
        "models": models_page(),
        "commands": commands_page(),
        **{f"methods/{name}": method_page(method) for name, method in METHODS},
    }
    written = []
    for name, text in pages.items():
        path = folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _NOTE + text.rstrip() + "\n"
        # An unchanged page keeps its time, so that Sphinx does not read it again.
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
        written.append(path)
    for stale in set(folder.rglob("*.md")) - set(written):
        stale.unlink()
    return written


# ---- pages ----------------------------------------------------------------------------------------------------------


def methods_page() -> str:
    """All pruning methods, patterns and allocations."""
    methods = [method for _, method in METHODS]
    listing = _table(
        ("method", "what it is", "reads calibration text", "patterns", "refit"),
        (
            (f"[`{m.name}`]({m.name}.md)", m.title, _yes(m.needs_calibration()), _codes(m.patterns), _yes(m.refits))
            for m in methods
        ),
    )
    patterns = _table(
        ("pattern", "zeros", "sparsity"),
        (
            (f"`{p.name}`", p.summary, "as asked" if p.fixed_sparsity is None else f"{p.fixed_sparsity} always")
            for p in PATTERNS.values()
        ),
    )
    allocations = sorted({name for m in methods for name in m.allocations})
    spread = _table(
        ("allocation", "methods"),
        ((f"`{name}`", _codes(m.name for m in methods if name in m.allocations)) for name in allocations),
    )
    pages = "\n".join(m.name for m in methods)
    return f"""# Pruning methods

A method chooses which weights become zero, and may change those it keeps. `sparsehpc init` lists the same names; a
study's grid names them under `methods`.

{listing}

## Patterns

{patterns}

"N:M" always means *keep N of M* here. Much published code counts the weights it removes instead.

`heads`, `neurons` and `layers` leave zeros in place in a study, so that every format can hold them; the format
`compact` leaves out their rows and columns. `sparsehpc densify DIR --smaller` writes what `sparsehpc prune` removed as
a smaller dense model that plain transformers opens, as far as a config can say its shape: one number of heads and
neurons for all layers (those that lost more keep zeros), and fewer heads only for Llama, Mistral and Qwen. It says what
stays, and why.

## Allocations

How the zeros are spread over the layers (`allocation` in the grid); `default` is a method's own rule.

{spread}

```{{toctree}}
:hidden:

{pages}
```
"""


def _in_turn(method: type[Method]) -> str:
    """Whether statistics can be recomputed inside a layer: there must be some, of single matrices."""
    single = any(PATTERNS[name].kind != "structured" for name in method.patterns)
    return "yes" if single and method.statistics else "with `refit = true`" if single and method.refits else "no"


def method_page(method: type[Method]) -> str:
    """One pruning method."""
    statistics = {"input_norm": "the norm of every input feature", "hessian": "the Hessian X X^T of its inputs"}
    learns = "the dense model's run over the calibration text" if method.needs_calibration() else ""
    needs = ", ".join(statistics[name] for name in method.statistics) or learns or "nothing but the weights"
    options = _table(
        ("option", "type", "default", "meaning"),
        (
            (f"`{field.name}`", _type(method.options_type, field.name), f"`{field.default!r}`", meaning)
            for field, meaning in _options(method.options_type)
        ),
    )
    return f"""# {method.title}

`methods = ["{method.name}"]`

{_prose(method)}

```text
{method.formula}
```

| | |
|---|---|
| published in | {method.citation} |
| reads of each layer | {needs} |
| patterns | {_codes(method.patterns)} |
| allocations | {_codes(method.allocations)} |
| `refit = true` possible | {_yes(method.refits)} |
| `true_sequential = true` possible | {_in_turn(method)} |
| cost | {_escape(method.cost)} |
| when to use it | {_escape(method.advice)} |
| published code differs | {_escape(method.differs)} |
| code | `{_source(method)}` |

## Options

{options or "This method has no options."}
"""


def formats_page() -> str:
    """All storage formats."""
    formats = [layout for _, layout in FORMATS]
    listing = _table(
        ("variant", "what is stored", "lossless", *(f"break-even, {dtype}" for dtype in DTYPES)),
        ((f"`{f.name}`", f.summary, _yes(f.lossless), *(_break_even(f, dtype) for dtype in DTYPES)) for f in formats),
    )
    sizes = "\n\n".join(_sizes(formats, dtype) for dtype in ("float32", "bfloat16"))
    sections = "\n\n".join(f"### `{f.name}`\n\n{_prose(f)}\n\n{_about(f)}" for f in formats)
    return f"""# Storage formats

A study names them under `variants`. Each one owns its arrays, counts every byte of them, multiplies from them and
gives the dense matrix back. The dense model is always measured too.

{listing}

*Break-even*: the sparsity from which the format is smaller than the dense matrix in that type, per-row overhead left
out. A dash: there is no such sparsity, because the format is always or never smaller, or because its size depends on
where the zeros lie. Formats called `dense-...` store the dense weights and are shown as references.

## What a matrix takes

Bytes of one {_ROWS} x {_COLUMNS} matrix as a share of the dense matrix in the same type, from each format's own
formula, all arrays included. An empty cell: the size depends on where the zeros lie, or the format needs a pattern.

{sizes}

## One by one

{sections}
"""


def metrics_page() -> str:
    """All metrics and what is better."""
    rows = []
    for name, metric in METRICS:
        better = ", ".join(f"`{figure}` {direction}" for figure, direction in metric.better.items())
        rows.append((f"`{name}`", metric.summary, better))
    return f"""# Metrics

Formulas are under [Definitions](../definitions.md). A metric that adds figures adds columns to the summary tables.

{_table(("metric", "what it measures", "better"), rows)}
"""


def corpora_page() -> str:
    """All corpora."""
    rows = (
        (
            f"`{name}:PATH`" if corpus.takes_path else f"`{name}`",
            corpus.summary,
            "a document" if corpus.separate_documents else "a piece of one text",
            f"`sparsehpc prepare {name}`" if corpus.must_be_prepared else "",
        )
        for name, corpus in CORPORA
    )
    return f"""# Corpora

Texts that a study can name under `evaluation.corpus` and `calibration.corpus`.

{_table(("corpus", "text", "a window is", "where there is internet, first"), rows)}

How windows are cut, and which positions count, is under [Definitions](../definitions.md#windows).
"""


def columns_page() -> str:
    """The two tables a cell writes."""

    def fields(table: Any) -> str:
        return _table(
            ("column", "type", "meaning"),
            (
                (f"`{f.name}`", f"{f.type}{' or null' * f.nullable}", _escape(f.metadata[b"meaning"].decode()))
                for f in table
            ),
        )

    return f"""# Columns

Every cell writes two Parquet files. Schema version {schema.SCHEMA_VERSION}: it rises when a column changes its meaning,
and files of another version are refused.

## `measurements.parquet`: one row per figure

{fields(schema.MEASUREMENTS)}

Figures combine over rows by `reduction`: `sum` adds numerators; `ratio` divides the sum of numerators by the sum of
denominators; `exp_ratio` is the exponential of that; `max` takes the largest.

## `cell.parquet`: one row per cell

Where this file is whole, the cell is done.

{fields(schema.CELL)}

## `plan.parquet`: what should exist

{fields(schema.PLAN)}
"""


def studies_page() -> str:
    """Studies that come with the package."""
    from jobs.study import SHIPPED, shipped_studies

    sections = []
    for name in shipped_studies():
        text = (SHIPPED / f"{name}.toml").read_text(encoding="utf-8").rstrip()
        sections.append(f"## `{name}`\n\n```toml\n{text}\n```")
    return "# Shipped studies\n\nRun one by its name: `sparsehpc run NAME`.\n\n" + "\n\n".join(sections)


def models_page() -> str:
    """Models whose configuration ships."""
    from sparsehpc.models.shipped import shipped_models

    rows = (
        (f"`{m.id}`", m.summary, m.dtype, f"`{m.revision[:12]}`" if m.revision else f"`{m.package}`", m.licence)
        for m in shipped_models().values()
    )
    return f"""# Known models

Their configurations ship, so that `sparsehpc plan` needs no weights. `random:` before a name gives the same shape with
untrained weights, for structure, size and speed.

{_table(("id", "model", "published in", "revision or package", "licence"), rows)}

A study may also name any model of the Hugging Face hub (`OWNER/NAME`), a local folder, or a `FILE.gguf`, as long as it
is a causal language model of the OPT, GPT-NeoX or Llama family.
"""


def commands_page() -> str:
    """Every verb of the command line."""
    import typer

    from jobs import cli

    cli._add_verbs()
    verbs: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    sections = [_command(name, command) for name, command in sorted(verbs.items()) if not command.hidden]
    return "# Commands\n\n`sparsehpc VERB --help` says the same.\n\n" + "\n\n".join(sections)


# ---- parts ----------------------------------------------------------------------------------------------------------


def _command(name: str, command: Any) -> str:
    if hasattr(command, "commands"):
        return "\n\n".join(_command(f"{name} {sub}", each) for sub, each in sorted(command.commands.items()))
    usage, rows = [f"sparsehpc {name}"], []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            shown = parameter.metavar or parameter.name.upper()
            usage.append(shown)
            rows.append((f"`{shown}`", getattr(parameter, "help", "") or ""))
        elif not parameter.hidden and "--help" not in parameter.opts:
            rows.append((f"`{', '.join(parameter.opts)}`", parameter.help or ""))
    body = inspect.cleandoc(command.help or "").replace("\f", "")
    options = _table(("argument or option", "meaning"), ((a, _escape(b)) for a, b in rows))
    return f"## `{name}`\n\n```text\n{' '.join(usage)} [OPTIONS]\n```\n\n{body}\n\n{options}".rstrip()


def _sizes(formats: Sequence[type[Format]], dtype: str) -> str:
    total = _ROWS * _COLUMNS
    dense = total * DTYPE_BYTES[dtype]
    rows = []
    for layout in formats:
        cells = []
        for sparsity in _SPARSITIES:
            storable = layout.unsupported(_ROWS, _COLUMNS, dtype, "unstructured") is None
            size = layout.predicted_bytes(_ROWS, _COLUMNS, round(total * (1 - sparsity)), dtype) if storable else None
            cells.append("" if size is None else f"{size / dense:.3f}")
        if any(cells):
            rows.append((f"`{layout.name}`", *cells))
    return _table((f"{dtype}, sparsity", *(f"{sparsity:.0%}" for sparsity in _SPARSITIES)), rows)


def _about(layout: type[Format]) -> str:
    facts = ["lossless" if layout.lossless else "not lossless: the decoded weights are rounded"]
    if layout.reference:
        facts.append("a reference: it stores the dense weights, whatever the sparsity")
    return (
        f"{layout.summary[:1].upper()}{layout.summary[1:]}. {'; '.join(facts).capitalize()}. Code: `{_source(layout)}`."
    )


def _break_even(layout: type[Format], dtype: str) -> str:
    value = layout.break_even_sparsity(dtype)
    return "-" if value is None else f"{value:.1%}"


def _options(kind: type[Any]) -> Iterable[tuple[Any, str]]:
    meanings = _parameters(inspect.getdoc(kind) or "")
    return [(field, _escape(meanings.get(field.name, ""))) for field in dataclasses.fields(kind)]


def _parameters(docstring: str) -> dict[str, str]:
    """Descriptions of a NumPy docstring's parameters."""
    _, _, section = docstring.partition("Parameters\n----------\n")
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.split(",")]
        else:
            for name in names:
                found.setdefault(name, []).append(line.strip())
    return {name: " ".join(lines).strip() for name, lines in found.items()}


def _prose(item: Any) -> str:
    """A class's docstring without its parameter sections, as Markdown."""
    text = inspect.cleandoc(item.__doc__ or "")
    return re.split(r"\n\n(?:Parameters|Attributes|Notes)\n-+\n", text)[0].replace("``", "`")


def _type(kind: type[Any], name: str) -> str:
    hint = get_type_hints(kind)[name]
    return _codes(map(repr, get_args(hint))) if get_origin(hint) else f"`{hint.__name__}`"


def _source(item: Any) -> str:
    return item.__module__.replace(".", "/") + ".py"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; nothing where there are no rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(headings)} |", "|" + "---|" * len(headings), *body]) if body else ""

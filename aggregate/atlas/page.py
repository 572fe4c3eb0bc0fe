"""Pages of results: a template's prose around tables and figures computed from the copied tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from aggregate.atlas import cells, speed, tables
from aggregate.atlas.select import of, table_of
from aggregate.atlas.twins import twins
from aggregate.claims import judge, load_tables, read_claims
from aggregate.claims.text import as_markdown, as_table, count
from aggregate.figures.data import Record, records
from aggregate.figures.style import number
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder

Runs = Mapping[str, RunFolder]

_TEMPLATE = "index.md.jinja"
_MADE = "<!-- made by `make results` from the tables in data/; edit {source} -->\n"
_CLAIMS = """# Claims of the old study

What the study that this project began as said, in our own words, and what the tables of today's runs say to it. A claim
is *true* where every figure obeys its rule with its whole 95 % interval, *false* where none does, *depends* in between,
and *not measured* where there is no figure. `sparsehpc claims RUN...` judges the same file,
[`claims.toml`](claims.toml), by any runs.

"""


def pages(folder: Path, runs: Runs, figures: Collection[str] = ()) -> dict[str, str]:
    """Text of every page by file name; ``figures`` are the names of those that were drawn."""
    loaded = load_tables(list(runs.values()))
    claims, expected = (judge(read_claims(folder / name), loaded) for name in ("claims.toml", "expectations.toml"))
    methods = table_of(runs, "methods")
    words = {
        "claims": as_table(claims, linked=True),
        "claims_count": count(claims),
        "expectations": as_table(expected),
        "verdicts": {ruling.claim.id: ruling.verdict for ruling in [*claims, *expected]},
        "conditions": tables.conditions(runs),
        "by_sparsity": cells.by_sparsity(methods),
        "patterns": cells.patterns(methods),
        "extras": cells.extras(methods),
        "targets": cells.targets(methods),
        "structured": cells.structured(methods, table_of(runs, "heads")),
        "blocks": cells.blocks(table_of(runs, "storage")),
        "sizes": tables.sizes(table_of(runs, "storage")),
        "sizes_patterned": tables.sizes_patterned(table_of(runs, "storage")),
        "old_sizes": tables.old_sizes(table_of(runs, "reference-untrained", both=True)),
        "shares": tables.shares(runs),
        "scopes": cells.scopes(table_of(runs, "scores")),
        "score_seeds": tables.seeds(runs, "scores", ("top1_agreement", "kl", "perplexity")),
        "seeds": tables.seeds(runs, "calibration-seeds"),
        "repeated": tables.repeated(methods, table_of(runs, "tipping-point")),
        "tipping": tables.tipping_points(runs, "tipping-point"),
        "twins": twins(runs),
        "speeds": speed.speeds(runs, "speed"),
        "speed": speed.speed_words(runs, "speed"),
        "cell": finder(runs),
        "benchmark": benchmark_finder(folder / "benchmarks"),
        "number": number,
        "figures": set(figures),
    }
    try:
        found = Environment(  # noqa: S701 - Markdown; names from tables are escaped where they are written
            loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
        ).get_template(_TEMPLATE)
        index = found.render(words)
    except TemplateError as error:
        raise UserError(f"{folder / _TEMPLATE} cannot be rendered: {error}") from error
    return {
        "index.md": _MADE.format(source=_TEMPLATE) + index,
        "claims.md": _MADE.format(source="claims.toml") + _CLAIMS + as_markdown(claims),
    }


def benchmark_finder(folder: Path) -> Callable[..., Any]:
    """Look a row of a committed benchmark up in a template: ``benchmark(file, sparsity=0.3, baseline="own dense")``."""

    def find(name: str, **where: Any) -> Any:
        path = folder / f"{name}.json"
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read: {error}", f"sparsehpc bench SUITE --json {path}") from error
        found = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
        if len(found) != 1:
            raise UserError(f"{path} has {len(found)} rows with {where} instead of one")
        return found[0]

    return find


def finder(runs: Runs) -> Callable[..., Record]:
    """``cell(run, method=..., ...)``: the one row with these values, for figures inside sentences."""

    def cell(run: str, **wanted: Any) -> Record:
        defaults = {"refit": False, "allocation": "default", "targets": "attention+mlp"}
        found = of(table_of(runs, run), **{**defaults, **wanted})
        if len(found) != 1:
            raise UserError(f"a sentence of {_TEMPLATE} names {len(found)} cells of {run}: {wanted}")
        return records(found)[0]

    return cell

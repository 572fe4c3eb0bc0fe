"""Words about a run, made from what really ran: a methods paragraph and a citation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from aggregate import statistics
from aggregate.figures.style import percent
from aggregate.private import scrub
from aggregate.tables import read_table
from sparsehpc.core.layout import RunFolder


def provenance_of(run: RunFolder) -> dict[str, Any]:
    """Content of ``provenance.json``, empty where it cannot be read."""
    try:
        found = json.loads(run.provenance.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def methods_paragraph(run: RunFolder) -> str:
    """One paragraph for a paper: models, methods, texts, machines and versions of the cells that are done."""
    table = read_table(run, "global").to_pandas().drop_duplicates("cell_id")
    coverage = read_table(run, "coverage").to_pandas()
    if table.empty:
        return f"None of the {len(coverage)} planned cells is done."
    costs = read_table(run, "costs").to_pandas()
    pruned = table[table["method"] != "none"]
    text = f"We evaluated {_models(table)}, {_pruning(pruned)}. {_references(table)}{_refined(run)}"
    learned = pruned[pruned["calibration_corpus"].notna()] if len(pruned) else pruned
    for row in _rows(learned, ["calibration_corpus", "calibration_windows", "calibration_window_tokens"]):
        seeds = learned[learned["calibration_corpus"] == row["calibration_corpus"]]["calibration_seed"].nunique()
        text += (
            f"Methods that need data were calibrated on {row['calibration_windows']:.0f} windows of "
            f"{row['calibration_window_tokens']:.0f} tokens of {scrub(row['calibration_corpus'])} "
            f"({seeds} seed{'s' * (seeds != 1)}). "
        )
    for row in _rows(table, ["evaluation_corpus", "evaluation_windows", "evaluation_window_tokens"]):
        text += (
            f"Behaviour was measured on {row['evaluation_windows']} windows of at most "
            f"{row['evaluation_window_tokens']} tokens of {scrub(row['evaluation_corpus'])}. "
        )
    if table["interval_units"].max() >= statistics.FEWEST_UNITS:
        text += (
            f"Intervals are 95 % studentised bootstrap intervals ({statistics.DRAWS:,} draws of windows), paired with "
            f"the dense model. "
        )
    done = int((coverage["state"] == "done").sum())
    text += f"{done} of {len(coverage)} planned cells are done. "
    machines = _listed(
        sorted({scrub(str(name)) for name in costs["cpu_model"]} | {scrub(str(n)) for n in costs["device_name"]})
    )
    threads = _listed(str(count) for count in sorted(set(costs["threads"])))
    return text + f"Cells ran on {machines} with {threads} thread{'s' * (threads != '1')}, {_software(run)}."


def citation(run: RunFolder) -> str:
    """BibTeX entry of the software at the commit that made the run."""
    found = provenance_of(run)
    commit = str(found.get("commit", "")).rstrip("+")
    version = found.get("sparsehpc", "unknown")
    note = f"version {version}" + (f", commit {commit[:12]}" if commit else "")
    digest = found.get("study_digest")
    study = f", study {digest[:12]}" if isinstance(digest, str) else ""
    return "\n".join(
        [
            "@software{sparsehpc,",
            "  title = {sparsehpc: what sparsity really does to a transformer language model},",
            "  author = {{The sparsehpc developers}},",
            f"  version = {{{version}}},",
            f"  note = {{{note}{study}}},",
            "}",
        ]
    )


def _models(table: pd.DataFrame) -> str:
    return _listed(
        f"{scrub(row['model'])} in {row['dtype']}" + ("" if row["trained"] else " (untrained: random weights)")
        for row in _rows(table, ["model", "dtype", "trained"])
    )


def _pruning(pruned: pd.DataFrame) -> str:
    """What ran, no product of lists: methods stand together where sparsities, targets and storage are the same."""
    if pruned.empty:
        return "without pruning"
    way = ["method", "pattern", "allocation", "refit", "true_sequential"]
    together: dict[tuple[str, str, str], list[str]] = {}
    for _, part in pruned.groupby([*way, "targets"], dropna=False, sort=False):
        by_sparsities: dict[str, list[str]] = {}
        for variant, rows in part.groupby("variant", sort=False):
            by_sparsities.setdefault(_listed(percent(s) for s in sorted(set(rows["sparsity_target"]))), []).append(
                str(variant)
            )
        for sparsities, variants in by_sparsities.items():
            key = (sparsities, str(part["targets"].iloc[0]), _listed(variants))
            together.setdefault(key, []).append(_method(_rows(part, way)[0]))
    return "pruned by " + "; by ".join(
        f"{_listed(methods)} at {sparsities} of the prunable weights ({targets}), stored as {variants}"
        for (sparsities, targets, variants), methods in together.items()
    )


def _references(table: pd.DataFrame) -> str:
    """Dense models in other types."""
    names = list(dict.fromkeys(table.loc[(table["method"] == "none") & (table["variant"] != "dense"), "variant"]))
    return f"Beside them stand the dense weights as {_listed(names)}. " if names else ""


def _refined(run: RunFolder) -> str:
    return "Some sparsities were added by bisection around the tipping points. " if run.extensions.is_file() else ""


def _method(row: dict[str, Any]) -> str:
    extra = [] if row["allocation"] == "default" else [f"allocation {row['allocation']}"]
    extra += ["refitted"] if row["refit"] else []
    extra += ["true sequential"] if pd.notna(row["true_sequential"]) else []
    return f"{row['method']} ({', '.join([row['pattern'], *extra])})"


def _software(run: RunFolder) -> str:
    found = provenance_of(run)
    versions = found.get("versions")
    named = versions if isinstance(versions, dict) else {}
    parts = [f"sparsehpc {found.get('sparsehpc', 'of unknown version')}"]
    parts += [f"{name} {named[name]}" for name in ("torch", "transformers") if name in named]
    if "python" in found:
        parts.append(f"Python {found['python']}")
    return scrub(_listed(parts))


def _rows(table: pd.DataFrame, columns: list[str]) -> list[dict[str, Any]]:
    return [
        {str(key): value for key, value in row.items()} for row in table[columns].drop_duplicates().to_dict("records")
    ]


def _listed(items: Iterable[str]) -> str:
    """Join as people do: a, b and c."""
    names = list(items)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

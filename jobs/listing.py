"""What there is: rows for ``sparsehpc ls``, from the registries and from disk, without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.study import SHIPPED, shipped_studies

Entries = list[dict[str, str]]


def listing(kind: str) -> Entries:
    """Rows of one kind of thing; see `LISTS`."""
    return LISTS[kind]()


def _models() -> Entries:
    from sparsehpc.models.shipped import shipped_models
    from sparsehpc.models.snapshot import is_prepared

    return [
        {"name": model.id, "prepared": "yes" if is_prepared(model.id) else "no", "dtype": model.dtype,
         "licence": model.licence, "summary": model.summary}
        for model in shipped_models().values()
    ]  # fmt: skip


def _studies() -> Entries:
    return [{"name": name, "summary": _first_comment(SHIPPED / f"{name}.toml")} for name in shipped_studies()]


def _methods() -> Entries:
    from sparsehpc.pruning.base import METHODS

    return [
        {"name": name, "data": "yes" if method.needs_calibration() else "no", "patterns": ", ".join(method.patterns),
         "title": method.title}
        for name, method in METHODS
    ]  # fmt: skip


def _patterns() -> Entries:
    from sparsehpc.pruning.patterns import PATTERNS

    return [{"name": pattern.name, "summary": pattern.summary} for pattern in PATTERNS.values()]


def _variants() -> Entries:
    from sparsehpc.formats.base import FORMATS

    return [
        {"name": name, "lossless": "yes" if layout.lossless else "no", "summary": layout.summary}
        for name, layout in FORMATS
    ]


def _metrics() -> Entries:
    from sparsehpc.metrics.base import METRICS

    return [{"name": name, "summary": metric.summary} for name, metric in METRICS]


def _corpora() -> Entries:
    from sparsehpc.text.base import CORPORA

    return [
        {"name": f"{name}:PATH" if corpus.takes_path else name,
         "prepared": "-" if corpus.takes_path else "yes" if corpus().is_prepared() else "no",
         "summary": corpus.summary}
        for name, corpus in CORPORA
    ]  # fmt: skip


def _profiles() -> Entries:
    from slurm.profile_file import load_profile, names

    return [{"name": name, "summary": load_profile(name).description} for name in names()]


def _runs() -> Entries:
    from jobs.plan_file import planned_ids
    from sparsehpc.core.layout import RunFolder

    found = []
    for path in sorted(Path("runs").glob("*/plan.parquet")):
        run = RunFolder(path.parent)
        done = sum(1 for _ in run.cells.glob("*/*/cell.parquet"))
        found.append({"name": str(run.root), "cells": str(len(planned_ids(path))), "written": str(done)})
    return found


def _first_comment(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0] if text else ""
    return first.removeprefix("#").strip()


LISTS: dict[str, Callable[[], Entries]] = {
    "models": _models,
    "studies": _studies,
    "methods": _methods,
    "patterns": _patterns,
    "variants": _variants,
    "metrics": _metrics,
    "corpora": _corpora,
    "profiles": _profiles,
    "runs": _runs,
}

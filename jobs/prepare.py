"""Prepare whatever a person names: models, corpora, or all that a study file needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jobs.study import SHIPPED, find_study, load_study
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.models import sources
from sparsehpc.text.base import CORPORA, open_corpus


def prepare_names(names: Sequence[str], revision: str | None, report: Callable[[str], object]) -> list[dict[str, str]]:
    """Prepare each name; what can be prepared is, and all failures are told at the end.

    Parameters
    ----------
    names
        Models as a study writes them, corpora, study files or names of shipped studies.
    revision
        Commit or branch, for one hub model.
    report
        Called with lines of progress.

    Raises
    ------
    UserErrors
        With every name that could not be prepared.
    """
    if revision is not None and len(names) != 1:
        raise UserError("--revision goes with one model", "prepare the others apart")
    done, problems = [], []
    for kind, name, commit, folder in _wanted(names, revision):
        try:
            with contextlib.chdir(folder):
                where = _prepare(kind, name, commit, report)
            done.append({"kind": kind, "name": name, "where": where})
        except UserError as error:
            problems.append(str(error).replace("\n", "\n  "))
    if problems:
        raise UserErrors("could not prepare", list(dict.fromkeys(problems)))
    return done


def _wanted(names: Sequence[str], revision: str | None) -> Iterator[tuple[str, str, str | None, Path]]:
    """Kind, name, revision, and the folder that relative paths start at; each once."""
    seen: set[tuple[str, str, str | None, Path]] = set()
    for entry in _expanded(names, revision):
        if entry not in seen:
            seen.add(entry)
            yield entry


def _expanded(names: Sequence[str], revision: str | None) -> Iterator[tuple[str, str, str | None, Path]]:
    here = Path.cwd()
    for name in names:
        if name.endswith(".toml") or (SHIPPED / f"{name}.toml").is_file():
            study = load_study(find_study(name))
            folder = study.path.parent.absolute()
            for model in study.models:
                yield "model", model.id, model.revision, folder
            for table in (study.evaluation, study.calibration):
                if table is not None:
                    yield "corpus", table.corpus, None, folder
        elif name.partition(":")[0] in CORPORA:
            yield "corpus", name, None, here
        else:
            yield "model", name, revision, here


def _prepare(kind: str, name: str, revision: str | None, report: Callable[[str], object]) -> str:
    if kind == "model":
        return str(sources.prepare(name, revision, report).path)
    corpus = open_corpus(name)
    stored = corpus.prepare()
    if stored is None:
        corpus.documents()  # reads it: a missing or empty file is told now, not by a run
        return "is at hand"
    return str(stored)

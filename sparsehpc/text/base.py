"""The contract of a corpus: where text comes from and how it falls into windows.

A corpus is one file in ``sparsehpc/text/corpora``. A study names it as ``name`` or, where it reads a file, as
``name:PATH``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from sparsehpc.core.errors import UserError, unknown
from sparsehpc.core.registry import Registry

CORPORA: Registry[type[Corpus]] = Registry("corpus", "sparsehpc.text.corpora")


class Corpus(ABC):
    """A source of text.

    Parameters
    ----------
    path
        The file of a corpus that `takes_path`; None for the others.

    Attributes
    ----------
    name
        Name in study files, without a path.
    summary
        One line for lists and documentation.
    separate_documents
        True where each document is a window of its own, with the tokenizer's special tokens, and every position
        counts. False where the documents are joined to one text that is cut into contiguous windows.
    takes_path
        Whether the name is written with a path, ``name:PATH``.
    must_be_prepared
        Whether the text comes from the internet: ``sparsehpc prepare NAME`` stores it, runs only read it.
    joiner
        What stands between two documents of one text.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    separate_documents: ClassVar[bool] = False
    takes_path: ClassVar[bool] = False
    must_be_prepared: ClassVar[bool] = False
    joiner: ClassVar[str] = "\n\n"

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    @abstractmethod
    def documents(self) -> list[str]:
        """Return the documents in their fixed order.

        Raises
        ------
        UserError
            The text is missing, not UTF-8, damaged or not prepared.
        """

    def text(self) -> str:
        """Return all documents as one text."""
        return self.joiner.join(self.documents())

    def is_prepared(self) -> bool:
        """Whether the text can be read here without the internet."""
        return True

    def prepare(self) -> Path | None:
        """Fetch and store the text where there is internet; returns where it lies, None where nothing is stored."""
        return None

    def origin(self) -> str:
        """Say in words which text this is (version, revision, digest), for provenance."""
        return self.key

    @property
    def key(self) -> str:
        """Name that is equal for two spellings of one corpus: a path is made absolute."""
        return self.name if self.path is None else f"{self.name}:{self.path.resolve()}"


def corpus_problem(written: str) -> str | None:
    """Say what is wrong with a corpus's name as a study writes it, or return None; reads no text."""
    name, colon, path = written.partition(":")
    if name not in CORPORA:
        return unknown("corpus", name, corpus_names())
    kind = CORPORA.get(name)
    if kind.takes_path and not path.strip():
        return f"corpus {written!r} names no file; write {name}:PATH"
    if colon and not kind.takes_path:
        return f"corpus {written!r}: {name!r} takes no path; write {name!r}, or file:PATH for a text of your own"
    return None


def open_corpus(written: str) -> Corpus:
    """Corpus of a name as a study writes it: ``samples``, ``wikitext2``, ``file:PATH``, ``lines:PATH``, ...

    Raises
    ------
    UserError
        The name is unknown, or its path is missing or superfluous.
    """
    if problem := corpus_problem(written):
        raise UserError(problem)
    name, _, path = written.partition(":")
    return CORPORA.get(name)(Path(path.strip()).expanduser() if path else None)


def corpus_names() -> list[str]:
    """Names of all corpora as a study writes them, sorted."""
    return [f"{name}:PATH" if kind.takes_path else name for name, kind in CORPORA]

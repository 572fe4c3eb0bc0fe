"""Corpora that are stored once, as UTF-8 text with a digest: those from the internet, fetched with ``datasets``."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_text
from sparsehpc.core.home import home
from sparsehpc.text.base import Corpus


class PreparedCorpus(Corpus):
    """A corpus of the Hugging Face hub, stored under ``SPARSEHPC_HOME/corpora``.

    ``NAME.json`` (documents' lengths and the digest) is written after ``NAME.txt`` and marks it as whole.

    Attributes
    ----------
    dataset, revision
        Repository on the hub, and its commit.
    """

    must_be_prepared: ClassVar[bool] = True
    dataset: ClassVar[str]
    revision: ClassVar[str]

    @abstractmethod
    def fetch(self) -> list[str]:
        """Download the documents with ``datasets``."""

    @property
    def _text_path(self) -> Path:
        return home() / "corpora" / f"{self.name}.txt"

    @property
    def _mark_path(self) -> Path:
        return self._text_path.with_suffix(".json")

    def is_stored(self) -> bool:
        """Whether the stored text is there; its digest is checked when it is read."""
        return self._mark_path.is_file() and self._text_path.is_file()

    def is_prepared(self) -> bool:
        """Whether the text can be read here without the internet."""
        return self.is_stored()

    def prepare(self) -> Path:
        """Fetch the text and store it; text that is there and whole is left alone."""
        if self._is_whole():
            return self._text_path
        try:
            documents = self.fetch()
        except ImportError as error:
            raise UserError(
                f"corpus {self.name!r} is fetched with the package 'datasets', which is not installed",
                "pip install 'sparsehpc[hub]'",
            ) from error
        except Exception as error:
            # datasets passes on whatever the network, the hub or the file system raised.
            raise UserError(
                f"corpus {self.name!r} could not be fetched from {self.dataset}: {error}",
                f"run 'sparsehpc prepare {self.name}' where there is internet, with the same SPARSEHPC_HOME",
            ) from error
        self._store(documents)
        return self._text_path

    def _is_whole(self) -> bool:
        try:
            self._read()
        except UserError:  # absent or damaged: both are fetched
            return False
        return True

    def _store(self, documents: list[str]) -> None:
        mark: dict[str, Any] = {
            "dataset": self.dataset,
            "revision": self.revision,
            "sha256": hashlib.sha256("".join(documents).encode()).hexdigest(),
            "characters": [len(document) for document in documents],
        }
        try:
            self._mark_path.unlink(missing_ok=True)
            write_text(self._text_path, "".join(documents))
            write_text(self._mark_path, json.dumps(mark))
        except OSError as error:
            raise UserError(
                f"corpus {self.name!r} cannot be stored in {self._text_path.parent}: {error.strerror or error}",
                "set SPARSEHPC_HOME to a folder that you can write",
            ) from error

    def _read(self) -> tuple[dict[str, Any], list[str]]:
        command = f"sparsehpc prepare {self.name}"
        if not self.is_stored():
            raise UserError(
                f"corpus {self.name!r} is not prepared in {self._text_path.parent}",
                f"run '{command}' where there is internet",
            )
        try:
            mark = json.loads(self._mark_path.read_text(encoding="utf-8"))
            text = self._text_path.read_bytes().decode("utf-8")
            if hashlib.sha256(text.encode()).hexdigest() != mark["sha256"]:
                raise ValueError("the text does not match its digest")
            documents, start = [], 0
            for length in mark["characters"]:
                documents.append(text[start : start + length])
                start += length
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"corpus {self.name!r} in {self._text_path} is damaged: {error}",
                f"run '{command}' again where there is internet",
            ) from error
        return mark, documents

    def documents(self) -> list[str]:
        """Return the stored documents, checked against their digest."""
        return self._read()[1]

    def origin(self) -> str:
        """Repository, commit and digest."""
        mark = self._read()[0]
        return f"{self.name} ({mark['dataset']} at {mark['revision']}, sha256 {mark['sha256']})"

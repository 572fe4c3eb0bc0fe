"""``python-docs``: the language reference that every Python carries, in ``pydoc_data.topics``."""

from __future__ import annotations

import hashlib
import platform
from typing import ClassVar

from sparsehpc.text.base import CORPORA
from sparsehpc.text.prepared import PreparedCorpus

#: Paragraphs at least this long appear once: topics quote whole sections of each other, and calibration must not
#: read again what evaluation has read. Shorter ones ("For example:") repeat as in any text.
_UNIQUE_CHARACTERS = 50


@CORPORA.register("python-docs")
class PythonDocs(PreparedCorpus):
    """Topics of ``help()`` in sorted order as one text; differs by Python version.

    Readable everywhere. Once it was prepared, the stored text is read, so that other versions of Python read the same.
    """

    must_be_prepared: ClassVar[bool] = False
    dataset: ClassVar[str] = "pydoc_data.topics"
    revision: ClassVar[str] = platform.python_version()
    name: ClassVar[str] = "python-docs"
    summary: ClassVar[str] = (
        "the prose of the standard library's pydoc_data.topics (differs by Python version; prepare keeps it)"
    )

    def is_prepared(self) -> bool:
        """Always: this Python has a text, if none is stored."""
        return True

    def documents(self) -> list[str]:
        """Return the stored topics, or those of this Python."""
        return super().documents() if self.is_stored() else self.fetch()

    def fetch(self) -> list[str]:
        """Return the topics in sorted order; a long paragraph that an earlier one holds is left out."""
        from pydoc_data.topics import topics

        seen: set[str] = set()
        documents = []
        for name in sorted(topics):
            paragraphs = []
            for paragraph in topics[name].strip("\n").split("\n\n"):
                content = " ".join(paragraph.split())
                if len(content) >= _UNIQUE_CHARACTERS:
                    if content in seen:
                        continue
                    seen.add(content)
                paragraphs.append(paragraph)
            if paragraphs:
                documents.append("\n\n".join(paragraphs))
        return documents

    def origin(self) -> str:
        """Python version and digest of the text."""
        digest = hashlib.sha256(self.text().encode()).hexdigest()
        version = self._read()[0]["revision"] if self.is_stored() else self.revision
        return f"python-docs of Python {version} (sha256 {digest})"

"""``file:PATH``: any UTF-8 text."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from sparsehpc.text.base import CORPORA, Corpus
from sparsehpc.text.reading import read_utf8


@CORPORA.register("file")
class File(Corpus):
    """One text of the user's, cut into contiguous windows."""

    name: ClassVar[str] = "file"
    summary: ClassVar[str] = "any UTF-8 text file, read as one text"
    takes_path: ClassVar[bool] = True

    def documents(self) -> list[str]:
        """Return the file's text as one document."""
        assert self.path is not None, "open_corpus gives a path"  # noqa: S101
        return [read_utf8(self.path, f"corpus file:{self.path}")]

    def origin(self) -> str:
        """Name of the file and digest of the text; the path stays out of what may be published."""
        assert self.path is not None, "open_corpus gives a path"  # noqa: S101
        return f"file:{self.path.name} (sha256 {hashlib.sha256(self.text().encode()).hexdigest()})"

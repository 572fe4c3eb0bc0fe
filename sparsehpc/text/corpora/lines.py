"""``lines:PATH``: one document a line."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from sparsehpc.text.base import CORPORA, Corpus
from sparsehpc.text.reading import read_utf8


@CORPORA.register("lines")
class Lines(Corpus):
    r"""Documents of the user's, one a line (``\n`` or ``\r\n``); empty lines hold none."""

    name: ClassVar[str] = "lines"
    summary: ClassVar[str] = "a UTF-8 text file with one document a line, each a window of its own"
    takes_path: ClassVar[bool] = True
    separate_documents: ClassVar[bool] = True
    joiner: ClassVar[str] = "\n"

    def documents(self) -> list[str]:
        """Return the lines that hold text, white space at either end kept."""
        assert self.path is not None, "open_corpus gives a path"  # noqa: S101
        text = read_utf8(self.path, f"corpus lines:{self.path}")
        # Not splitlines(): form feeds and Unicode separators belong to a document.
        return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]

    def origin(self) -> str:
        """Name of the file and digest of the text; the path stays out of what may be published."""
        assert self.path is not None, "open_corpus gives a path"  # noqa: S101
        return f"lines:{self.path.name} (sha256 {hashlib.sha256(self.text().encode()).hexdigest()})"

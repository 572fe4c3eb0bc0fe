"""``samples``: the 40 short texts that come with this project."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import ClassVar

from sparsehpc.text.base import CORPORA, Corpus

#: A line that starts a text: ``=== register``.
_MARK = "=== "


@CORPORA.register("samples")
class Samples(Corpus):
    """Forty original texts in many registers, each a window of its own."""

    name: ClassVar[str] = "samples"
    summary: ClassVar[str] = "40 short texts written for this project, in many registers, each a window of its own"
    separate_documents: ClassVar[bool] = True

    def documents(self) -> list[str]:
        """Return the texts in the order of the file."""
        return [text for _, text in labelled_samples()]

    def origin(self) -> str:
        """Digest of the texts."""
        return f"samples (sha256 {hashlib.sha256(self.text().encode()).hexdigest()})"


def labelled_samples() -> list[tuple[str, str]]:
    """Register and text of every sample."""
    source = resources.files("sparsehpc.text").joinpath("samples", "samples.txt").read_text(encoding="utf-8")
    texts: list[tuple[str, str]] = []
    for block in f"\n{source}".split(f"\n{_MARK}")[1:]:
        register, _, text = block.partition("\n")
        texts.append((register.strip(), text.strip("\n")))
    return texts

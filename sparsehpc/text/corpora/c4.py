"""``c4``: the first English documents of C4, the usual text for calibration."""

from __future__ import annotations

from itertools import islice
from typing import ClassVar

from sparsehpc.text.base import CORPORA
from sparsehpc.text.prepared import PreparedCorpus

#: About 2 million tokens: seven draws of 128 windows of 2048 tokens; the whole first shard holds 356 thousand.
_DOCUMENTS = 4000


@CORPORA.register("c4")
class C4(PreparedCorpus):
    """First documents of C4's English training part (Raffel et al., arXiv:1910.10683)."""

    name: ClassVar[str] = "c4"
    summary: ClassVar[str] = f"the first {_DOCUMENTS} English training documents of C4 (prepared beforehand)"
    dataset: ClassVar[str] = "allenai/c4"
    revision: ClassVar[str] = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"

    def fetch(self) -> list[str]:
        """Download the beginning of the first shard; streamed, the rest of it is not fetched."""
        from datasets import load_dataset

        part = load_dataset(
            self.dataset,
            data_files={"train": "en/c4-train.00000-of-01024.json.gz"},
            split="train",
            revision=self.revision,
            streaming=True,
        )
        return [str(document["text"]) for document in islice(part, _DOCUMENTS)]

"""``wikitext2``: the test part of WikiText-2 (raw), the usual text for perplexity."""

from __future__ import annotations

from typing import ClassVar

from sparsehpc.text.base import CORPORA
from sparsehpc.text.prepared import PreparedCorpus


@CORPORA.register("wikitext2")
class WikiText2(PreparedCorpus):
    """WikiText-2 raw, test part, its lines joined by two newlines as GPTQ, SparseGPT and Wanda do.

    Merity et al., Pointer Sentinel Mixture Models, arXiv:1609.07843.
    """

    name: ClassVar[str] = "wikitext2"
    summary: ClassVar[str] = "WikiText-2 raw, test part, lines joined by two newlines (prepared beforehand)"
    dataset: ClassVar[str] = "Salesforce/wikitext"
    revision: ClassVar[str] = "b08601e04326c79dfdd32d625aee71d232d685c3"

    def fetch(self) -> list[str]:
        """Download the test part; empty lines stay, as in the published protocol."""
        from datasets import load_dataset

        part = load_dataset(self.dataset, "wikitext-2-raw-v1", split="test", revision=self.revision)
        return [str(line) for line in part["text"]]

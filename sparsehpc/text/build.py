"""From a study's words to fixed token windows: which tokens are evaluated, which calibrate, which start a text.

Separate documents (``samples``, ``lines:``) are windows of their own: with the tokenizer's own special tokens,
unpadded, cut at ``window_tokens``. Any other corpus is tokenised once, whole and without special tokens, and cut
from its start into contiguous windows that share no token; a tokenizer that begins texts with a BOS token gets one
at the head of each window, counted in ``window_tokens``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from sparsehpc.core.errors import UserError
from sparsehpc.text.base import Corpus, open_corpus
from sparsehpc.text.windows import TokenWindows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsehpc.core.spec import Calibration, Windows
    from sparsehpc.text.tokenizer import Encoded, Tokenizer

#: A run of tokens this long in both an evaluation and a calibration window of different corpora is a copied text.
COPIED_RUN_TOKENS = 64


def evaluation_windows(spec: Windows, tokenizer: Tokenizer, max_positions: int) -> TokenWindows:
    """Windows that behaviour is measured on: the first of the corpus.

    Parameters
    ----------
    spec
        Corpus, number and length of the windows.
    tokenizer
        The model's tokenizer.
    max_positions
        Longest window the model accepts.

    Raises
    ------
    UserError
        The corpus is unknown, missing, empty, damaged or too short, or the windows do not suit the model.
    """
    cut = _Cut.of(spec, tokenizer, max_positions)
    if spec.windows > cut.units:
        fits = f"set evaluation.windows to at most {cut.units}, or " if cut.units else ""
        raise UserError(
            f"evaluation corpus {spec.corpus!r} is too short: "
            f"{cut.need(spec.windows)} needed, {cut.supply()} available",
            f"{fits}take shorter windows or a longer corpus",
        )
    return cut.windows(range(spec.windows))


def calibration_windows(
    spec: Calibration, evaluation_spec: Windows | None, tokenizer: Tokenizer, max_positions: int
) -> TokenWindows:
    """Windows that a pruning method learns from, drawn by seed from what evaluation does not use.

    Of the corpus that evaluation reads too, what follows the evaluation windows is open to calibration; any other
    corpus is open as a whole. Seed 0 takes the first windows that are open. Every other seed draws as many of all
    open windows without repetition (PCG64 seeded with the seed and the corpus), never the set that seed 0 takes.

    Parameters
    ----------
    spec
        Corpus, number and length of the windows, and the seed.
    evaluation_spec
        What evaluation reads; None where nothing is evaluated and every window is open.
    tokenizer
        The model's tokenizer.
    max_positions
        Longest window the model accepts.

    Raises
    ------
    UserError
        As `evaluation_windows`; or the corpus holds copies of evaluation text.
    """
    if spec.seed < 0:
        raise UserError(f"calibration seed {spec.seed} is negative; seeds are 0, 1, 2, ...")
    corpus = open_corpus(spec.corpus)
    same = evaluation_spec is not None and corpus.key == open_corpus(evaluation_spec.corpus).key
    cut = _Cut.of(spec, tokenizer, max_positions, used_by=evaluation_spec if same else None)
    # With no window to spare every seed would draw the same set, and the spread over seeds would be a false zero.
    needed = spec.windows + (spec.seed != 0)
    if needed > cut.units:
        used = f" after the {evaluation_spec.windows} evaluation windows" if same and evaluation_spec else ""
        spare = f" (one more than drawn, so that seed {spec.seed} differs from seed 0)" if spec.seed else ""
        raise UserError(
            f"calibration corpus {spec.corpus!r} is too short: {cut.need(needed)} needed{spare}, "
            f"{cut.supply()} available{used}",
            "take fewer or shorter windows, or another calibration corpus",
        )
    windows = cut.windows(_draw(spec, corpus, cut.units))
    if evaluation_spec is not None and not same:
        _refuse_copies(windows, evaluation_windows(evaluation_spec, tokenizer, max_positions), spec, evaluation_spec)
    return windows


def generation_prompts(tokenizer: Tokenizer, prompts: int = 20, prompt_tokens: int = 16) -> NDArray[np.int64]:
    """Equally long beginnings of the first samples, for greedy generation.

    Parameters
    ----------
    tokenizer
        The model's tokenizer; its own special tokens are added.
    prompts, prompt_tokens
        How many, and how long.

    Returns
    -------
    int64 token ids, prompts x prompt_tokens.
    """
    documents = open_corpus("samples").documents()
    if not 1 <= prompts <= len(documents):
        raise UserError(f"{prompts} prompts asked for; there are {len(documents)} samples")
    ids = [tokenizer.encode(text, special_tokens=True).ids for text in documents[:prompts]]
    shortest = min(len(window) for window in ids)
    if not 1 <= prompt_tokens <= shortest:
        raise UserError(f"prompts of {prompt_tokens} tokens asked for; the shortest sample has {shortest}")
    return np.stack([window[:prompt_tokens] for window in ids])


@dataclasses.dataclass(frozen=True, slots=True)
class _Cut:
    """A tokenised corpus and where its windows lie; unit i is the i-th window that is open.

    Parameters
    ----------
    corpus, tokenizer
        What was read, and how.
    texts
        One entry per document; a single one for a corpus that is one text.
    window_tokens
        Longest window.
    first
        First open document, or first open token of one text.
    units
        How many windows are open; negative where evaluation alone needs more than there is.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    texts: tuple[Encoded, ...]
    window_tokens: int
    first: int
    units: int

    @classmethod
    def of(
        cls, spec: Windows | Calibration, tokenizer: Tokenizer, max_positions: int, used_by: Windows | None = None
    ) -> _Cut:
        corpus = open_corpus(spec.corpus)
        _check_numbers(spec, max_positions)
        documents = tuple(corpus.documents()) if corpus.separate_documents else (corpus.text(),)
        if not any(document.strip() for document in documents):
            raise UserError(f"corpus {spec.corpus!r} is empty")
        texts = _tokenise(tokenizer, documents, corpus.separate_documents)
        if corpus.separate_documents:
            first = used_by.windows if used_by else 0
            units = len(texts) - first
        else:
            bos = int(tokenizer.adds_bos)
            first = used_by.windows * (used_by.window_tokens - bos) if used_by else 0
            units = (len(texts[0].ids) - first) // (spec.window_tokens - bos)
        return cls(corpus, tokenizer, texts, spec.window_tokens, first, units)

    def need(self, units: int) -> str:
        """So many windows in words."""
        if self.corpus.separate_documents:
            return f"{units} documents"
        tokens = units * (self.window_tokens - int(self.tokenizer.adds_bos))
        return f"{units} windows of {self.window_tokens} tokens ({tokens} tokens of text)"

    def supply(self) -> str:
        """What is open, in words."""
        units = max(self.units, 0)
        if self.corpus.separate_documents:
            return str(units)
        return f"{units} ({max(len(self.texts[0].ids) - self.first, 0)} tokens of text)"

    def windows(self, chosen: range | list[int]) -> TokenWindows:
        """Cut the chosen units."""
        if self.corpus.separate_documents:
            cuts = [self._document(self.first + unit) for unit in chosen]
        else:
            cuts = [self._slice(unit) for unit in chosen]
        ids, sizes, starts = zip(*cuts, strict=True)
        return TokenWindows(
            ids=ids,
            text_bytes=sizes,
            every_position=self.corpus.separate_documents,
            starts=starts,
            source=self._source(list(starts)),
        )

    def _document(self, number: int) -> tuple[NDArray[np.int64], int, int]:
        text = self.texts[number]
        ids = text.ids[: self.window_tokens]
        if len(ids) < 2:
            raise UserError(
                f"document {number + 1} of corpus {self.corpus.key!r} has {len(ids)} token; a window needs 2, "
                "one to read and one to predict"
            )
        return ids, int(text.ends[len(ids) - 1] - text.ends[0]), number

    def _slice(self, unit: int) -> tuple[NDArray[np.int64], int, int]:
        text, bos = self.texts[0], int(self.tokenizer.adds_bos)
        length = self.window_tokens - bos
        start = self.first + unit * length
        ids = text.ids[start : start + length]
        covered_from = text.starts[start] if bos else text.ends[start]
        if bos:
            ids = np.concatenate([np.array([self.tokenizer.bos_id], dtype=np.int64), ids])
        return ids, int(text.ends[start + length - 1] - covered_from), start

    def _source(self, starts: list[int]) -> str:
        if self.corpus.separate_documents:
            place = f"documents {_ranges(starts, 1)} of {len(self.texts)}"
        else:
            bos = " after a BOS token" if self.tokenizer.adds_bos else ""
            length = self.window_tokens - int(self.tokenizer.adds_bos)
            place = f"tokens {_ranges(starts, length)} of {len(self.texts[0].ids)} in windows of {length}{bos}"
        return f"{self.corpus.origin()}; {place}; tokenizer sha256 {self.tokenizer.digest}"


# Two entries: the evaluation and the calibration corpus, which several seeds read again.
@lru_cache(maxsize=2)
def _tokenise(tokenizer: Tokenizer, documents: tuple[str, ...], special_tokens: bool) -> tuple[Encoded, ...]:
    return tuple(tokenizer.encode(document, special_tokens=special_tokens) for document in documents)


def _check_numbers(spec: Windows | Calibration, max_positions: int) -> None:
    if spec.windows < 1:
        raise UserError(f"windows = {spec.windows} of corpus {spec.corpus!r}: at least 1 is needed")
    if spec.window_tokens < 2:
        raise UserError(f"window_tokens = {spec.window_tokens} of corpus {spec.corpus!r}: at least 2 are needed")
    if spec.window_tokens > max_positions:
        raise UserError(
            f"window_tokens = {spec.window_tokens} of corpus {spec.corpus!r}: the model reads at most "
            f"{max_positions} tokens",
            f"set window_tokens to at most {max_positions}",
        )


def _draw(spec: Calibration, corpus: Corpus, units: int) -> list[int]:
    first = list(range(spec.windows))
    if spec.seed == 0:
        return first
    # The name as written, not the absolute path: a study draws the same windows on every machine.
    name = int.from_bytes(hashlib.sha256(spec.corpus.encode()).digest()[:8], "little")
    # Raw output, whose stream numpy keeps for good; Generator.choice may change with a release.
    bits = np.random.PCG64([spec.seed, name])
    while True:
        order = np.argsort(bits.random_raw(units), kind="stable")
        drawn = sorted(int(unit) for unit in order[: spec.windows])
        if drawn != first:
            return drawn


def _refuse_copies(
    calibration: TokenWindows, evaluation: TokenWindows, spec: Calibration, evaluation_spec: Windows
) -> None:
    """Refuse a calibration corpus that holds the evaluation text under another name."""
    runs = {run for window in evaluation.ids for run in _runs(window)}
    for number, window in enumerate(calibration.ids):
        if not runs.isdisjoint(_runs(window)):
            raise UserError(
                f"calibration corpus {spec.corpus!r} holds text that evaluation corpus {evaluation_spec.corpus!r} "
                f"is measured on: calibration window {number} shares {COPIED_RUN_TOKENS} tokens in a row, or the "
                "whole of a shorter window, with it",
                "take another calibration corpus",
            )


def _runs(window: NDArray[np.int64]) -> list[bytes]:
    """Every run of `COPIED_RUN_TOKENS` tokens by digest; the whole window where it is shorter."""
    raw = np.ascontiguousarray(window, dtype="<i8").tobytes()
    size = 8 * min(COPIED_RUN_TOKENS, len(window))
    return [hashlib.blake2b(raw[i : i + size], digest_size=12).digest() for i in range(0, len(raw) - size + 1, 8)]


def _ranges(starts: list[int], length: int) -> str:
    """Half-open ranges in words, neighbours joined: ``0-1024, 4096-4608``."""
    joined: list[list[int]] = []
    for start in sorted(starts):
        if joined and joined[-1][1] == start:
            joined[-1][1] = start + length
        else:
            joined.append([start, start + length])
    return ", ".join(f"{start}-{end}" for start, end in joined)

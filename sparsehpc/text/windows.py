"""Token windows: fixed once, read by digest, with the rule of which positions count."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparsehpc.core.errors import UserError
from sparsehpc.core.files import write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenWindows:
    """Windows of tokens as a model reads them.

    Parameters
    ----------
    ids
        One int64 array of token ids per window; lengths may differ.
    text_bytes
        UTF-8 bytes of the text that the predicted tokens (all but the first) of each window cover: the
        denominator of bits per byte.
    every_position
        True for separate documents: agreement and KL count all positions. False for windows cut from one
        long text: every position but the last counts, for all measures.
    starts
        Position of each window's first token in the tokenised corpus (document number for documents).
    source
        Corpus and tokeniser in words, for provenance.
    """

    ids: tuple[NDArray[np.int64], ...]
    text_bytes: tuple[int, ...]
    every_position: bool
    starts: tuple[int, ...]
    source: str

    @property
    def tokens(self) -> int:
        """Tokens in all windows."""
        return sum(len(window) for window in self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return max(len(window) for window in self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 over ids, lengths and the counting rule."""
        digest = hashlib.sha256(b"every" if self.every_position else b"all-but-last")
        for window, size in zip(self.ids, self.text_bytes, strict=True):
            digest.update(len(window).to_bytes(8, "little") + size.to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(window, dtype="<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write to ``path`` (.npz) atomically."""
        header = {
            "every_position": self.every_position,
            "source": self.source,
            "lengths": [len(window) for window in self.ids],
            "text_bytes": list(self.text_bytes),
            "starts": list(self.starts),
            "digest": self.digest,
        }
        blob = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        ids = np.concatenate(self.ids) if self.ids else np.zeros(0, np.int64)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, header=blob, ids=ids)

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> TokenWindows:
        """Read what `save` wrote; `UserError` where the file is missing or damaged in any way."""
        try:
            # From memory: on a damaged archive numpy leaves a file that it opened itself open.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                header = json.loads(archive["header"].tobytes())
                ids = archive["ids"].astype(np.int64)
            if sum(header["lengths"]) != len(ids):
                raise ValueError("lengths do not add up")
            cuts = np.cumsum(header["lengths"])[:-1]
            windows = cls(
                ids=tuple(np.split(ids, cuts)) if header["lengths"] else (),
                text_bytes=tuple(header["text_bytes"]),
                every_position=header["every_position"],
                starts=tuple(header["starts"]),
                source=header["source"],
            )
            if windows.digest != header["digest"]:
                raise ValueError("it does not match its digest")
        except Exception as error:  # on damaged bytes zipfile and numpy raise almost anything
            raise UserError(
                f"token file {path} is missing or damaged: {error}", "delete it and run the study again"
            ) from error
        return windows

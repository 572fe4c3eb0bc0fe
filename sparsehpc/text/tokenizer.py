"""A snapshot's tokenizer on the ``tokenizers`` library alone: no transformers, no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsehpc.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer as Backend


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of one text, and where each lies in it.

    Parameters
    ----------
    ids
        int64 token ids.
    starts, ends
        int64 UTF-8 byte positions of each token in the text. A special token that the tokenizer adds covers
        nothing; tokens that share a character cover its bytes one after the other.
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class Tokenizer:
    """Text to token ids and back.

    Parameters
    ----------
    backend
        The tokenizer proper; `load_tokenizer` makes it.
    bos_id
        Id of the beginning-of-sequence token, or None where the tokenizer has none.
    adds_bos
        Whether a text with special tokens begins with it.
    digest
        SHA-256 of what the tokenizer was read from.
    folder
        Where it was read, for error messages.

    Attributes
    ----------
    bos_id, adds_bos, digest, folder
        As given.
    """

    def __init__(self, backend: Backend, *, bos_id: int | None, adds_bos: bool, digest: str, folder: Path) -> None:
        self._backend = backend
        self.bos_id = bos_id
        self.adds_bos = adds_bos
        self.digest = digest
        self.folder = folder

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's embedding may have more rows."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special_tokens: bool) -> Encoded:
        """Tokenise one text.

        Parameters
        ----------
        text
            Any text.
        special_tokens
            Whether to add the tokens that this tokenizer adds to a text of its own (a BOS for OPT, nothing for
            GPT-NeoX and SmolLM2).
        """
        encoding = self._backend.encode(text, add_special_tokens=special_tokens)
        ids = np.asarray(encoding.ids, dtype=np.int64)
        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        added = np.asarray(encoding.special_tokens_mask, dtype=bool) & (offsets[:, 0] == offsets[:, 1])
        starts, ends = self._byte_positions(text, ids, offsets, added)
        begun = bool(added[:1].any()) and ids[0] == self.bos_id
        if special_tokens and self.adds_bos and not begun:
            ids = np.concatenate([np.array([self.bos_id], dtype=np.int64), ids])
            starts, ends = np.concatenate([[0], starts]), np.concatenate([[0], ends])
        return Encoded(ids, starts, ends)

    def decode(self, ids: Sequence[int] | NDArray[np.int64], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def _byte_positions(
        self, text: str, ids: NDArray[np.int64], offsets: NDArray[np.int64], added: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """UTF-8 start and end of every token from character offsets, exact inside split characters too."""
        position = _utf8_positions(text)
        real = np.flatnonzero(~added)
        first, last = offsets[real, 0], offsets[real, 1]
        following = np.append(first[1:], len(text))
        # What a normaliser drops between two tokens (the accent that NFC joins to its letter) goes to the earlier.
        real_ends = position[np.maximum(last, following)]
        # Offsets point at whole characters. Where a token shares its last character with the next one, its end is
        # found by counting the bytes that its name spells, from the last token that began on a fresh character.
        shared = following < last
        for index in np.flatnonzero(shared):
            joins_previous = index > 0 and shared[index - 1]
            start = real_ends[index - 1] if joins_previous else position[first[index]]
            real_ends[index] = min(start + self._spelled_bytes(int(ids[real[index]])), position[last[index]])
        ends = np.zeros(len(ids), dtype=np.int64)
        ends[real] = real_ends
        ends = np.maximum.accumulate(ends)
        starts = np.append(np.zeros(1, dtype=np.int64), ends)[: len(ids)]
        return starts, ends

    def _spelled_bytes(self, token_id: int) -> int:
        """Bytes of a token that holds part of a character: byte-level names and ``<0xE2>`` spell one byte a sign."""
        name = str(self._backend.id_to_token(token_id))
        return 1 if len(name) == 6 and name.startswith("<0x") and name.endswith(">") else len(name)


def _utf8_positions(text: str) -> NDArray[np.int64]:
    """Byte position of every character, and of the end."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Tokenizer of a snapshot folder.

    Reads ``tokenizer.json``, and from ``tokenizer_config.json`` and ``config.json`` whether a text begins with a
    BOS token: ``add_bos_token`` decides where it is given, then the post-processor of ``tokenizer.json``, and OPT
    always has one (its checkpoints were trained with it, but a converted tokenizer can lack the rule).

    Parameters
    ----------
    folder
        Snapshot with the three files; the last two may be absent.

    Raises
    ------
    UserError
        ``tokenizer.json`` is missing or damaged.
    """
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    definition = _read_json(path)
    if definition is None:
        raise UserError(
            f"{folder} has no tokenizer.json",
            "save the model's fast tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        )
    settings = _read_json(folder / "tokenizer_config.json") or {}
    model = _read_json(folder / "config.json") or {}
    _keep_white_space(definition.get("post_processor"))
    # A tokenizer may be saved with the padding and cutting of its training; windows are cut here, and never padded.
    definition["padding"] = definition["truncation"] = None
    try:
        backend = Backend.from_str(json.dumps(definition))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is no tokenizer that can be read: {error}", "prepare the model again") from error
    bos_id = _bos_id(backend, settings, model)
    template_bos = bos_id is not None and bos_id in backend.encode("a", add_special_tokens=True).ids[:1]
    if isinstance(settings.get("add_bos_token"), bool):
        adds_bos = bool(settings["add_bos_token"]) and bos_id is not None
    else:
        adds_bos = template_bos or (model.get("model_type") == "opt" and bos_id is not None)
    if template_bos and not adds_bos:
        from tokenizers.processors import TemplateProcessing

        # The setting wins over the saved rule, as it does in transformers.
        backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    digest = hashlib.sha256(json.dumps([definition, bos_id, adds_bos], sort_keys=True).encode()).hexdigest()
    return Tokenizer(backend, bos_id=bos_id, adds_bos=adds_bos, digest=digest, folder=folder)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}", "prepare the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no table of settings", "prepare the model again")
    return content


def _keep_white_space(processor: Any) -> None:
    """Let offsets include the space before a word, which byte-level tokenizers trim off by default."""
    if isinstance(processor, dict):
        if processor.get("type") in ("ByteLevel", "RobertaProcessing"):
            processor["trim_offsets"] = False
        for part in processor.get("processors", []):
            _keep_white_space(part)


def _bos_id(backend: Backend, settings: dict[str, Any], model: dict[str, Any]) -> int | None:
    token = settings.get("bos_token")
    name = token.get("content") if isinstance(token, dict) else token
    found = backend.token_to_id(name) if isinstance(name, str) else None
    if found is None:
        found = model.get("bos_token_id")
    return found if isinstance(found, int) else None

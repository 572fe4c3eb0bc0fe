"""Small tokenizers of every kind that matters: byte-level, with and without BOS, normalising, SentencePiece-like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from sparsehpc.text.base import open_corpus

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_backend(merges: int = 0) -> Backend:
    """One token a byte, or a small BPE trained on the samples; ids 0 and 1 are ``<s>`` and ``</s>``."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258 + merges, initial_alphabet=ALPHABET, special_tokens=["<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(open_corpus("samples").documents() if merges else [""], trainer)
    return backend


def metaspace_backend() -> Backend:
    """Like Llama 2: a space is part of the word, unknown characters fall back to bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{value:02X}>": 3 + value for value in range(256)}
    for sign in "▁abcdefghijklmnopqrstuvwxyzé":
        vocab[sign] = len(vocab)
    vocab["▁a"] = len(vocab)
    backend = Backend(models.BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def save(
    backend: Backend, folder: Path, settings: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> Path:
    """Write a snapshot's tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if model is not None:
        (folder / "config.json").write_text(json.dumps(model))
    return folder

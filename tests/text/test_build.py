"""Which tokens are evaluated, which calibrate, and how many bytes they cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Calibration, Windows
from sparsehpc.text.base import open_corpus
from sparsehpc.text.build import COPIED_RUN_TOKENS, calibration_windows, evaluation_windows, generation_prompts
from sparsehpc.text.tokenizer import Tokenizer
from sparsehpc.text.windows import TokenWindows

SAMPLES = Windows(corpus="samples", windows=40, window_tokens=512)


def write(path: Path, text: str, kind: str) -> str:
    """Write a text and return the name of its corpus."""
    path.write_text(text, encoding="utf-8", newline="")
    return f"{kind}:{path}"


def texts(tokenizer: Tokenizer, windows: TokenWindows) -> list[str]:
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in windows.ids]


# ---- by eye ---------------------------------------------------------------------------------------------------------


def test_one_text_by_eye(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    corpus = write(tmp_path / "t", "abcdefghij", "file")
    windows = evaluation_windows(Windows(corpus=corpus, windows=3, window_tokens=3), bytes_tokenizer, 16)
    assert texts(bytes_tokenizer, windows) == ["abc", "def", "ghi"]
    assert windows.starts == (0, 3, 6)
    assert windows.text_bytes == (2, 2, 2)
    assert not windows.every_position
    assert "tokens 0-9 of 10 in windows of 3" in windows.source


def test_one_text_with_bos_by_eye(tmp_path: Path, bytes_bos_tokenizer: Tokenizer) -> None:
    corpus = write(tmp_path / "t", "abcdefghij", "file")
    windows = evaluation_windows(Windows(corpus=corpus, windows=5, window_tokens=3), bytes_bos_tokenizer, 3)
    assert texts(bytes_bos_tokenizer, windows) == ["</s>ab", "</s>cd", "</s>ef", "</s>gh", "</s>ij"]
    assert windows.starts == (0, 2, 4, 6, 8)
    assert windows.text_bytes == (2, 2, 2, 2, 2)


def test_documents_by_eye(tmp_path: Path, bytes_tokenizer: Tokenizer, bytes_bos_tokenizer: Tokenizer) -> None:
    corpus = write(tmp_path / "t", "abcde\n\nfg\n" + "hij\n", "lines")
    spec = Windows(corpus=corpus, windows=2, window_tokens=4)
    plain = evaluation_windows(spec, bytes_tokenizer, 4)
    assert texts(bytes_tokenizer, plain) == ["abcd", "fg"]
    assert plain.text_bytes == (3, 1)
    assert plain.starts == (0, 1)
    assert plain.every_position
    begun = evaluation_windows(spec, bytes_bos_tokenizer, 4)
    assert texts(bytes_bos_tokenizer, begun) == ["</s>abc", "</s>fg"]
    assert begun.text_bytes == (3, 2)


def test_bytes_of_signs_that_a_window_splits(
    tmp_path: Path, bytes_tokenizer: Tokenizer, bytes_bos_tokenizer: Tokenizer
) -> None:
    # é is 2 bytes, 語 3, 🤗 4: 11 bytes, one token each.
    corpus = write(tmp_path / "t", "aé語🤗b", "file")
    windows = evaluation_windows(Windows(corpus=corpus, windows=3, window_tokens=3), bytes_tokenizer, 9)
    assert windows.text_bytes == (2, 2, 2)
    windows = evaluation_windows(Windows(corpus=corpus, windows=5, window_tokens=3), bytes_bos_tokenizer, 9)
    assert windows.text_bytes == (2, 2, 2, 2, 2)


def test_calibration_by_eye(tmp_path: Path, bytes_tokenizer: Tokenizer, bytes_bos_tokenizer: Tokenizer) -> None:
    corpus = write(tmp_path / "t", "abcdefghijklm", "file")
    other = write(tmp_path / "u", "nopqrstuvwxyz", "file")
    evaluation = Windows(corpus=corpus, windows=2, window_tokens=3)
    same = Calibration(corpus=corpus, windows=3, window_tokens=2)
    assert texts(bytes_tokenizer, calibration_windows(same, evaluation, bytes_tokenizer, 9)) == ["gh", "ij", "kl"]
    # With a BOS evaluation reads abcd only.
    begun = calibration_windows(same, evaluation, bytes_bos_tokenizer, 9)
    assert texts(bytes_bos_tokenizer, begun) == ["</s>e", "</s>f", "</s>g"]
    separate = Calibration(corpus=other, windows=2, window_tokens=4)
    assert texts(bytes_tokenizer, calibration_windows(separate, evaluation, bytes_tokenizer, 9)) == ["nopq", "rstu"]


def test_calibration_by_documents_by_eye(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    corpus = write(tmp_path / "t", "one\ntwo\nthree\nfour\nfive", "lines")
    evaluation = Windows(corpus=corpus, windows=2, window_tokens=9)
    windows = calibration_windows(
        Calibration(corpus=corpus, windows=2, window_tokens=4), evaluation, bytes_tokenizer, 9
    )
    assert texts(bytes_tokenizer, windows) == ["thre", "four"]
    assert windows.starts == (2, 3)


# ---- properties -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=40, max_size=200),
    window_tokens=st.integers(2, 9),
    bos=st.booleans(),
)
def test_windows_cover_the_text_once_from_its_start(
    tmp_path_factory: pytest.TempPathFactory,
    bpe_tokenizer: Tokenizer,
    bpe_bos_tokenizer: Tokenizer,
    text: str,
    window_tokens: int,
    bos: bool,
) -> None:
    if not text.strip() or text.startswith("\ufeff"):
        return
    tokenizer = bpe_bos_tokenizer if bos else bpe_tokenizer
    corpus = write(tmp_path_factory.mktemp("c") / "t", text, "file")
    whole = tokenizer.encode(text, special_tokens=False)
    length = window_tokens - bos
    count = len(whole.ids) // length
    windows = evaluation_windows(Windows(corpus=corpus, windows=count, window_tokens=window_tokens), tokenizer, 9)
    assert all(len(ids) == window_tokens for ids in windows.ids)
    assert not bos or all(ids[0] == tokenizer.bos_id for ids in windows.ids)
    assert np.array_equal(np.concatenate([ids[int(bos) :] for ids in windows.ids]), whole.ids[: count * length])
    assert windows.starts == tuple(range(0, count * length, length))
    # Byte-level names spell one byte a sign: the bytes of the predicted tokens, counted another way.
    names = [[tokenizer._backend.id_to_token(int(i)) for i in ids[1:]] for ids in windows.ids]
    assert windows.text_bytes == tuple(sum(len(name) for name in row) for row in names)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    evaluated=st.integers(1, 10),
    evaluation_tokens=st.integers(2, 40),
    drawn=st.integers(1, 10),
    drawn_tokens=st.integers(2, 40),
    bos=st.booleans(),
)
def test_calibration_shares_no_token_with_evaluation(
    tmp_path_factory: pytest.TempPathFactory,
    bytes_tokenizer: Tokenizer,
    bytes_bos_tokenizer: Tokenizer,
    seed: int,
    evaluated: int,
    evaluation_tokens: int,
    drawn: int,
    drawn_tokens: int,
    bos: bool,
) -> None:
    text = open_corpus("samples").text()[:1000]
    corpus = write(tmp_path_factory.getbasetemp() / "shared.txt", text, "file")
    tokenizer = bytes_bos_tokenizer if bos else bytes_tokenizer
    evaluation_spec = Windows(corpus=corpus, windows=evaluated, window_tokens=evaluation_tokens)
    spec = Calibration(corpus=corpus, windows=drawn, window_tokens=drawn_tokens, seed=seed)
    evaluation = evaluation_windows(evaluation_spec, tokenizer, 64)
    calibration = calibration_windows(spec, evaluation_spec, tokenizer, 64)
    used = [
        set(range(start, start + len(ids) - bos))
        for windows in (evaluation, calibration)
        for start, ids in zip(windows.starts, windows.ids, strict=True)
    ]
    assert len(set.union(*used)) == sum(len(tokens) for tokens in used)
    for start, ids in zip(calibration.starts, calibration.ids, strict=True):
        assert tokenizer.decode(ids) == text[start : start + len(ids) - bos]  # the text is ASCII


def test_seeds_draw_other_windows_and_always_the_same(bpe_tokenizer: Tokenizer) -> None:
    def draw(seed: int, corpus: str = "python-docs") -> TokenWindows:
        spec = Calibration(corpus=corpus, windows=32, window_tokens=128, seed=seed)
        return calibration_windows(spec, SAMPLES, bpe_tokenizer, 512)

    draws = [draw(seed) for seed in range(6)]
    assert draws[0].starts == tuple(range(0, 32 * 128, 128))
    assert len({windows.digest for windows in draws}) == 6
    for windows, seed in zip(draws, range(6), strict=True):
        assert len(set(windows.starts)) == 32
        assert windows.digest == draw(seed).digest
        assert windows.starts == draw(seed).starts
    # Drawn from the whole corpus, not from its beginning.
    total = len(bpe_tokenizer.encode(open_corpus("python-docs").text(), special_tokens=False).ids)
    assert max(draws[1].starts) > total / 2


def test_the_draw_of_a_seed_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_tokenizer: Tokenizer
) -> None:
    """Published results name a seed: the windows it draws must not change with a release."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t", "".join(chr(ord("A") + i) for i in range(50)), "file")
    spec = Calibration(corpus="file:t", windows=4, window_tokens=2, seed=7)
    assert calibration_windows(spec, SAMPLES, bytes_tokenizer, 512).starts == (2, 12, 16, 26)


def test_every_seed_but_0_differs_from_seed_0(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    """With one window to spare a blind draw hits the first windows every fourth time."""
    corpus = write(tmp_path / "t", "abcdefgh", "file")
    for seed in range(1, 60):
        spec = Calibration(corpus=corpus, windows=3, window_tokens=2, seed=seed)
        assert calibration_windows(spec, SAMPLES, bytes_tokenizer, 512).starts != (0, 2, 4)


# ---- samples and prompts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bpe_tokenizer", "bpe_bos_tokenizer"])
def test_samples_are_whole_and_unpadded(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    windows = evaluation_windows(SAMPLES, tokenizer, 512)
    documents = open_corpus("samples").documents()
    assert windows.every_position
    assert [tokenizer.decode(ids) for ids in windows.ids] == documents
    first = [] if tokenizer.adds_bos else [len(tokenizer._backend.id_to_token(int(ids[0]))) for ids in windows.ids]
    expected = [len(text.encode()) for text in documents]
    assert list(windows.text_bytes) == [a - b for a, b in zip(expected, first or [0] * 40, strict=True)]


@pytest.mark.parametrize("name", ["bpe_tokenizer", "bpe_bos_tokenizer"])
def test_prompts_begin_the_first_samples(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    prompts = generation_prompts(tokenizer)
    assert prompts.shape == (20, 16)
    assert prompts.dtype == np.int64
    for row, text in zip(prompts, open_corpus("samples").documents(), strict=False):
        assert text.startswith(tokenizer.decode(row))
        assert (row[0] == tokenizer.bos_id) == tokenizer.adds_bos
    assert np.array_equal(generation_prompts(tokenizer, prompts=3, prompt_tokens=5), prompts[:3, :5])


@pytest.mark.parametrize(("prompts", "prompt_tokens"), [(0, 16), (41, 16), (20, 0), (20, 5000)])
def test_impossible_prompts(bpe_tokenizer: Tokenizer, prompts: int, prompt_tokens: int) -> None:
    with pytest.raises(UserError, match="asked for"):
        generation_prompts(bpe_tokenizer, prompts, prompt_tokens)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_too_short_names_both_numbers(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    corpus = write(tmp_path / "t", "abcdefghij", "file")
    with pytest.raises(UserError) as caught:
        evaluation_windows(Windows(corpus=corpus, windows=4, window_tokens=3), bytes_tokenizer, 16)
    assert "4 windows of 3 tokens (12 tokens of text) needed, 3 (10 tokens of text) available" in caught.value.message
    assert "at most 3" in caught.value.hint
    with pytest.raises(UserError, match=r"41 documents needed, 40 available"):
        evaluation_windows(Windows(corpus="samples", windows=41, window_tokens=64), bytes_tokenizer, 64)


def test_too_short_for_calibration(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    corpus = write(tmp_path / "t", "abcdefghij", "file")
    evaluation = Windows(corpus=corpus, windows=2, window_tokens=3)
    with pytest.raises(UserError) as caught:
        calibration_windows(Calibration(corpus=corpus, windows=3, window_tokens=2), evaluation, bytes_tokenizer, 16)
    message = "3 windows of 2 tokens (6 tokens of text) needed, 2 (4 tokens of text) available after the 2 evaluation"
    assert message in caught.value.message
    all_of_it = Calibration(corpus=corpus, windows=2, window_tokens=2)
    assert calibration_windows(all_of_it, evaluation, bytes_tokenizer, 16).starts == (6, 8)
    # Another seed could only draw the same two again: its spread would be a false zero.
    with pytest.raises(UserError, match="so that seed 5 differs from seed 0"):
        calibration_windows(
            Calibration(corpus=corpus, windows=2, window_tokens=2, seed=5), evaluation, bytes_tokenizer, 16
        )
    # Evaluation alone takes more than there is.
    with pytest.raises(UserError, match=r"needed, 0 \(0 tokens of text\) available"):
        calibration_windows(
            Calibration(corpus=corpus, windows=1, window_tokens=2),
            Windows(corpus=corpus, windows=9, window_tokens=3),
            bytes_tokenizer,
            16,
        )


def test_documents_too_few_for_calibration(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="1 documents needed, 0 available after the 40 evaluation windows"):
        calibration_windows(Calibration(corpus="samples", windows=1, window_tokens=64), SAMPLES, bytes_tokenizer, 512)


@pytest.mark.parametrize(
    ("windows", "window_tokens", "message"),
    [
        (0, 8, "windows = 0"),
        (-1, 8, "windows = -1"),
        (1, 1, "window_tokens = 1"),
        (1, 17, "the model reads at most 16 tokens"),
    ],
)
def test_windows_that_cannot_be(bytes_tokenizer: Tokenizer, windows: int, window_tokens: int, message: str) -> None:
    spec = Windows(corpus="samples", windows=windows, window_tokens=window_tokens)
    with pytest.raises(UserError, match=message):
        evaluation_windows(spec, bytes_tokenizer, 16)
    calibration = Calibration(corpus="python-docs", windows=windows, window_tokens=window_tokens)
    with pytest.raises(UserError, match=message):
        calibration_windows(calibration, Windows(corpus="samples", windows=1, window_tokens=8), bytes_tokenizer, 16)


def test_negative_seed(bytes_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="seed -1 is negative"):
        calibration_windows(
            Calibration(corpus="python-docs", windows=1, window_tokens=8, seed=-1), SAMPLES, bytes_tokenizer, 512
        )


def test_a_document_of_one_token(tmp_path: Path, bytes_tokenizer: Tokenizer, bytes_bos_tokenizer: Tokenizer) -> None:
    corpus = write(tmp_path / "t", "ab\nc\nde", "lines")
    spec = Windows(corpus=corpus, windows=2, window_tokens=8)
    with pytest.raises(UserError, match=r"document 2 of corpus .* has 1 token"):
        evaluation_windows(spec, bytes_tokenizer, 8)
    assert evaluation_windows(spec, bytes_bos_tokenizer, 8).text_bytes == (2, 1)


def test_unknown_corpus(bytes_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="did you mean 'samples'"):
        evaluation_windows(Windows(corpus="sampels", windows=1, window_tokens=8), bytes_tokenizer, 8)


# ---- evaluation text under another name -----------------------------------------------------------------------------


def test_one_file_spelled_twice_is_one_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_tokenizer: Tokenizer
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t", "abcdefghij", "file")
    evaluation = Windows(corpus="file:t", windows=2, window_tokens=3)
    spec = Calibration(corpus=f"file:{tmp_path}/../{tmp_path.name}/t", windows=2, window_tokens=2)
    assert texts(bytes_tokenizer, calibration_windows(spec, evaluation, bytes_tokenizer, 9)) == ["gh", "ij"]


@pytest.mark.parametrize("before", ["", "A new beginning that shifts every window. "])
def test_a_copy_of_the_evaluation_text_is_refused(tmp_path: Path, bytes_tokenizer: Tokenizer, before: str) -> None:
    text = open_corpus("samples").documents()[0]
    assert len(text) > 2 * COPIED_RUN_TOKENS
    original = write(tmp_path / "original", text, "file")
    copy = write(tmp_path / "copy", before + text, "file")
    evaluation = Windows(corpus=original, windows=2, window_tokens=100)
    spec = Calibration(corpus=copy, windows=2, window_tokens=150)
    with pytest.raises(UserError, match="holds text that evaluation corpus"):
        calibration_windows(spec, evaluation, bytes_tokenizer, 150)


def test_a_copied_document_is_refused(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    evaluation = Windows(corpus=write(tmp_path / "a", "one fish\ntwo fish", "lines"), windows=2, window_tokens=32)
    copied = Calibration(corpus=write(tmp_path / "b", "red fish\ntwo fish", "lines"), windows=2, window_tokens=32)
    with pytest.raises(UserError, match="calibration window 1 shares"):
        calibration_windows(copied, evaluation, bytes_tokenizer, 32)
    fresh = Calibration(corpus=copied.corpus, windows=1, window_tokens=32)
    assert texts(bytes_tokenizer, calibration_windows(fresh, evaluation, bytes_tokenizer, 32)) == ["red fish"]


def test_a_changed_file_is_read_again(tmp_path: Path, bytes_tokenizer: Tokenizer) -> None:
    spec = Windows(corpus=write(tmp_path / "t", "abcdef", "file"), windows=1, window_tokens=3)
    assert texts(bytes_tokenizer, evaluation_windows(spec, bytes_tokenizer, 9)) == ["abc"]
    write(tmp_path / "t", "uvwxyz", "file")
    assert texts(bytes_tokenizer, evaluation_windows(spec, bytes_tokenizer, 9)) == ["uvw"]


def test_provenance_names_text_range_and_tokenizer(bpe_bos_tokenizer: Tokenizer) -> None:
    spec = Calibration(corpus="python-docs", windows=2, window_tokens=11, seed=0)
    source = calibration_windows(spec, SAMPLES, bpe_bos_tokenizer, 512).source
    assert "python-docs of Python 3." in source
    assert "tokens 0-20 of " in source
    assert "in windows of 10 after a BOS token" in source
    assert bpe_bos_tokenizer.digest in source

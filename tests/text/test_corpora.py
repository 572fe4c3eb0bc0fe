"""Where text comes from: bundled, standard library, files, and the hub."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import Calibration, Windows
from sparsehpc.text.base import CORPORA, corpus_names, corpus_problem, open_corpus
from sparsehpc.text.build import calibration_windows, evaluation_windows
from sparsehpc.text.corpora.samples import labelled_samples
from sparsehpc.text.prepared import PreparedCorpus
from sparsehpc.text.tokenizer import Tokenizer


def test_names_of_the_issue_exist() -> None:
    assert {"samples", "python-docs", "wikitext2", "c4", "file:PATH", "lines:PATH"} <= set(corpus_names())


def test_every_corpus_describes_itself() -> None:
    for name, kind in CORPORA:
        assert kind.name == name
        assert len(kind.summary) > 20
        assert kind.__doc__


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("samples", None),
        ("file:a.txt", None),
        ("lines:/x/y: z.txt", None),
        ("sample", "unknown corpus 'sample'; did you mean 'samples'?"),
        ("wikitext", "did you mean 'wikitext2'?"),
        ("", "unknown corpus ''"),
        ("file", "write file:PATH"),
        ("file:", "write file:PATH"),
        ("lines: ", "write lines:PATH"),
        ("samples:a.txt", "'samples' takes no path"),
        ("notes.txt", "Legal: c4, file:PATH, lines:PATH"),
    ],
)
def test_names(written: str, problem: str | None) -> None:
    found = corpus_problem(written)
    if problem is None:
        assert found is None
        open_corpus(written)
    else:
        assert found is not None
        assert problem in found
        with pytest.raises(UserError) as caught:
            open_corpus(written)
        assert caught.value.message == found


def test_forty_samples_long_enough_for_prompts(bpe_tokenizer: Tokenizer) -> None:
    samples = labelled_samples()
    assert len(samples) == len(open_corpus("samples").documents()) == 40
    assert len({register for register, _ in samples}) == 40
    assert len({text for _, text in samples}) == 40
    for register, text in samples:
        assert 60 <= len(text.split()) <= 110, register
        assert text == text.strip(), register
        assert "===" not in text, register
        assert len(bpe_tokenizer.encode(text, special_tokens=True).ids) > 24


def test_python_docs_repeats_no_passage() -> None:
    corpus = open_corpus("python-docs")
    text = corpus.text()
    long = [" ".join(p.split()) for p in text.split("\n\n")]
    long = [paragraph for paragraph in long if len(paragraph) >= 50]
    assert len(long) > 500
    assert len(long) == len(set(long))
    # Sorted topics: the first is that of assert, and passages of it come before those of with.
    assert text.startswith('The "assert" statement')
    assert text.index('The "assert" statement') < text.index('The "with" statement is used to wrap')


def test_python_docs_is_the_same_in_another_process() -> None:
    program = "from sparsehpc.text.base import open_corpus; print(open_corpus('python-docs').origin())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == open_corpus("python-docs").origin()


def test_prepared_python_docs_are_those_of_the_python_that_prepared_them(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_corpus("python-docs")
    documents, origin = before.documents(), before.origin()
    assert not list(own_home.rglob("*.txt"))  # reading stores nothing
    assert before.prepare() == own_home / "corpora" / "python-docs.txt"
    monkeypatch.setattr("sparsehpc.text.corpora.python_docs.PythonDocs.fetch", lambda corpus: ["of another Python"])
    monkeypatch.setattr("sparsehpc.text.corpora.python_docs.PythonDocs.revision", "3.99.0")
    after = open_corpus("python-docs")
    assert (after.documents(), after.origin()) == (documents, origin)
    after.prepare()  # what is there and whole stays
    assert after.origin() == origin
    (own_home / "corpora" / "python-docs.txt").write_text("damaged")
    with pytest.raises(UserError, match="prepare python-docs"):
        after.documents()


def test_file_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufefferste Zeile é\r\n\r\n   \n zweite\x0cZeile \ndritte".encode())
    assert open_corpus(f"file:{path}").documents() == ["erste Zeile é\r\n\r\n   \n zweite\x0cZeile \ndritte"]
    assert open_corpus(f"lines:{path}").documents() == ["erste Zeile é", " zweite\x0cZeile ", "dritte"]


def test_one_file_under_two_spellings_is_one_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert open_corpus("file:a.txt").key == open_corpus(f"file:{tmp_path}/sub/../a.txt").key
    assert open_corpus("file:a.txt").key != open_corpus("lines:a.txt").key


@pytest.mark.parametrize("kind", ["file", "lines"])
def test_provenance_names_the_text_and_not_where_it_lies(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\ntwo")
    digest = hashlib.sha256(b"one\ntwo").hexdigest()
    assert open_corpus(f"{kind}:{path}").origin() == f"{kind}:notes.txt (sha256 {digest})"


@pytest.mark.parametrize("kind", ["file", "lines"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("folder", "cannot be read"),
        (b"caf\xe9 au lait", "not UTF-8 (byte 0xe9 at offset 3)"),
        (b"", "holds no text"),
        (b" \n\t\n", "holds no text"),
    ],
)
def test_unreadable_files(tmp_path: Path, kind: str, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(UserError) as caught:
        open_corpus(f"{kind}:{path}").documents()
    assert message in str(caught.value)
    assert f"{kind}:{path}" in str(caught.value)


class FakeHub:
    """Stands in for the package ``datasets``; says what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, column: list[str] | Exception) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.column = column
        module = types.ModuleType("datasets")
        module.load_dataset = self.load  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)

    def load(self, *words: Any, **options: Any) -> Any:
        self.calls.append((words, options))
        if isinstance(self.column, Exception):
            raise self.column
        if options.get("streaming"):
            return iter([{"text": text} for text in self.column])
        return {"text": self.column}


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEHPC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


LINES = ["", " = Héading = \n", "", " Text with 🤗 . \r\n", " More . \n"]


def test_wikitext2_is_prepared_once_and_read_by_digest(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, LINES)
    corpus = open_corpus("wikitext2")
    assert not corpus.is_prepared()
    path = corpus.prepare()
    assert path == own_home / "corpora" / "wikitext2.txt"
    assert corpus.is_prepared()
    assert hub.calls == [
        (
            ("Salesforce/wikitext", "wikitext-2-raw-v1"),
            {"split": "test", "revision": "b08601e04326c79dfdd32d625aee71d232d685c3"},
        )
    ]
    # The protocol of GPTQ, SparseGPT and Wanda: "\n\n".join(dataset["text"]).
    assert open_corpus("wikitext2").text() == "\n\n".join(LINES)
    assert hashlib.sha256("".join(LINES).encode()).hexdigest() in corpus.origin()
    corpus.prepare()
    assert len(hub.calls) == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["wikitext2.json", "wikitext2.txt"]


def test_c4_takes_the_first_documents_of_the_first_shard(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, [f"document {number}" for number in range(4100)])
    corpus = open_corpus("c4")
    corpus.prepare()
    words, options = hub.calls[0]
    assert words == ("allenai/c4",)
    assert options["data_files"] == {"train": "en/c4-train.00000-of-01024.json.gz"}
    assert corpus.documents() == [f"document {number}" for number in range(4000)]


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_prepared_corpora_calibrate_apart_from_what_is_evaluated(
    name: str, own_home: Path, monkeypatch: pytest.MonkeyPatch, bpe_tokenizer: Tokenizer
) -> None:
    samples = open_corpus("samples").documents()
    FakeHub(monkeypatch, samples)
    open_corpus(name).prepare()
    evaluation = Windows(corpus=name, windows=4, window_tokens=16)
    evaluated = evaluation_windows(evaluation, bpe_tokenizer, 64)
    draws = [
        calibration_windows(
            Calibration(corpus=name, windows=6, window_tokens=12, seed=seed), evaluation, bpe_tokenizer, 64
        )
        for seed in (0, 1)
    ]
    for drawn in draws:
        assert [len(ids) for ids in drawn.ids] == [12] * 6
        assert name in drawn.source
        for ids in drawn.ids:
            assert not any(bpe_tokenizer.decode(ids) in bpe_tokenizer.decode(other) for other in evaluated.ids)
    assert draws[0].starts != draws[1].starts


def damage_text(folder: Path) -> None:
    path = folder / "wikitext2.txt"
    path.write_bytes(path.read_bytes()[:-3])


def change_text(folder: Path) -> None:
    path = folder / "wikitext2.txt"
    path.write_bytes(path.read_bytes().replace(b"More", b"Less"))


def break_utf8(folder: Path) -> None:
    path = folder / "wikitext2.txt"
    path.write_bytes(path.read_bytes().replace(b"More", b"\xff\xfe\xff\xfe"))


def cut_mark(folder: Path) -> None:
    path = folder / "wikitext2.json"
    path.write_text(path.read_text()[:20])


def empty_mark(folder: Path) -> None:
    (folder / "wikitext2.json").write_text("[]")


@pytest.mark.parametrize("damage", [damage_text, change_text, break_utf8, cut_mark, empty_mark])
def test_damaged_corpus_is_refused_and_prepared_anew(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    hub = FakeHub(monkeypatch, LINES)
    open_corpus("wikitext2").prepare()
    damage(own_home / "corpora")
    with pytest.raises(UserError, match="is damaged") as caught:
        open_corpus("wikitext2").text()
    assert "sparsehpc prepare wikitext2" in caught.value.hint
    open_corpus("wikitext2").prepare()
    assert len(hub.calls) == 2
    assert open_corpus("wikitext2").documents() == LINES


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_not_prepared_names_the_command(own_home: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not prepared") as caught:
        open_corpus(name).documents()
    assert f"sparsehpc prepare {name}" in caught.value.hint
    assert not own_home.exists()


def test_an_interrupted_prepare_leaves_no_corpus(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, LINES)
    corpus = open_corpus("wikitext2")
    assert isinstance(corpus, PreparedCorpus)
    corpus.prepare()
    (own_home / "corpora" / "wikitext2.json").unlink()  # the mark is written last
    assert not corpus.is_prepared()
    with pytest.raises(UserError, match="is not prepared"):
        corpus.documents()


def test_prepare_without_internet(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, ConnectionError("no route to host"))
    with pytest.raises(UserError, match="could not be fetched from Salesforce/wikitext: no route to host"):
        open_corpus("wikitext2").prepare()
    assert not own_home.exists()


def test_prepare_without_the_package(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="'datasets', which is not installed") as caught:
        open_corpus("c4").prepare()
    assert "sparsehpc[hub]" in caught.value.hint


def test_prepare_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, LINES)
    (tmp_path / "blocked").write_text("a file, not a folder")
    monkeypatch.setenv("SPARSEHPC_HOME", str(tmp_path / "blocked"))
    with pytest.raises(UserError, match="cannot be stored") as caught:
        open_corpus("wikitext2").prepare()
    assert "SPARSEHPC_HOME" in caught.value.hint


def test_mark_says_what_was_fetched(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, LINES)
    open_corpus("wikitext2").prepare()
    mark = json.loads((own_home / "corpora" / "wikitext2.json").read_text())
    assert mark["dataset"] == "Salesforce/wikitext"
    assert mark["characters"] == [len(line) for line in LINES]

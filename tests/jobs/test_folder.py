"""Run folders: ours or refused; of the same study or the difference is named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.folder import existing_run, open_run
from jobs.plan import make_plan
from jobs.plan_file import planned_ids
from jobs.run import run_study
from jobs.study import parse_study
from sparsehpc.core.errors import UserError, UserErrors

from .conftest import TINY, Answer, write_study


def opened(folder: Path, text: str, place: Path) -> Path:
    """Run folder that has fixed what it reads, as every run that began."""
    path = write_study(place, text)
    study = parse_study(text, path)
    run = open_run(folder, study, make_plan(study).cells)
    run.inputs.touch()
    return run.root


def test_made_once_and_opened_again(tmp_path: Path) -> None:
    run = opened(tmp_path / "run", TINY, tmp_path)
    before = (run / "plan.parquet").read_bytes()
    assert opened(tmp_path / "run", TINY, tmp_path) == run
    assert (run / "plan.parquet").read_bytes() == before
    assert (run / "study.toml").read_text(encoding="utf-8") == TINY
    assert len(planned_ids(run / "plan.parquet")) == 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("windows = 3", "windows = 2", ["evaluation.windows is 3 there, 2 here"]),
        ("[0.5]", "[0.5, 0.6]", ["grid.sparsities", "0.5", "0.6"]),
        ('"csr"]', '"csr"]\ntie_rule = "threshold"', ['grid.tie_rule is absent there, "threshold" here']),
        ("seed = 7", "seed = 8", ["study.seed is 7 there, 8 here"]),
    ],
)
def test_another_study_is_refused_with_the_difference(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    opened(tmp_path / "run", TINY, tmp_path)
    other = TINY.replace(old, new)
    with pytest.raises(UserErrors) as caught:
        opened(tmp_path / "run", other, tmp_path)
    text = str(caught.value)
    assert "was made from another study" in text
    assert "--out" in text
    for word in words:
        assert word in text


def test_another_second_model_is_named_by_its_place(tmp_path: Path) -> None:
    opened(tmp_path / "run", TINY, tmp_path)
    other = TINY.replace("[grid]", '[[models]]\nid = "random:opt-125m"\nresource = "small"\n\n[grid]')
    with pytest.raises(UserErrors, match=r"models\[2\] is absent there"):
        opened(tmp_path / "run", other, tmp_path)


def test_a_study_that_could_not_start_may_be_repaired(tmp_path: Path, cli: Callable[..., Answer]) -> None:
    """Nothing was computed from the first try: the same folder takes the study once it is right."""
    out = tmp_path / "run"
    write_study(tmp_path, TINY.replace("lines:texts.txt", "lines:text.txt"))
    assert "there is no file text.txt" in cli("run", tmp_path / "tiny.toml", "--out", out).err
    write_study(tmp_path, TINY)
    (tmp_path / "texts.txt").write_text(" \n")
    assert "holds no text" in cli("run", tmp_path / "tiny.toml", "--out", out).err
    write_study(tmp_path, TINY)
    assert run_study(tmp_path / "tiny.toml", executor="debug", out=out, quiet=True, summary=False).complete
    assert (out / "study.toml").read_text(encoding="utf-8") == TINY
    with pytest.raises(UserErrors, match="was made from another study"):
        opened(out, TINY.replace("[0.5]", "[0.25]"), tmp_path)


def test_resources_and_comments_may_change(tmp_path: Path) -> None:
    opened(tmp_path / "run", TINY, tmp_path)
    changed = "# more memory\n" + TINY.replace("memory_gib = 1", "memory_gib = 2")
    run = opened(tmp_path / "run", changed, tmp_path)
    assert (run / "study.toml").read_text(encoding="utf-8") == changed


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no run folder of sparsehpc \(it holds me.jpg\)"):
        opened(tmp_path / "photos", TINY, tmp_path)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["me.jpg"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "file", TINY, tmp_path)


def test_a_folder_that_was_interrupted_while_it_was_made_is_completed(tmp_path: Path) -> None:
    (tmp_path / "run" / "tokens").mkdir(parents=True)
    (tmp_path / "run" / "study.toml").write_text(TINY[:40])
    (tmp_path / "run" / ".plan.parquet.17.tmp").write_text("half")
    run = opened(tmp_path / "run", TINY, tmp_path)
    assert len(planned_ids(run / "plan.parquet")) == 3


def test_reading_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run folder"):
        existing_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"is no run folder: it has no plan\.parquet"):
        existing_run(tmp_path)


@pytest.fixture
def read_only(tmp_path: Path, finished_run: Path) -> Iterator[Path]:
    """A finished run that cannot be written: by a mount where this is root, whom modes do not stop; else by mode."""
    folder = Path(shutil.copytree(finished_run, tmp_path / "ro"))
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("root, and mounts are not allowed here: nothing can be made read-only")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True, capture_output=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def test_a_read_only_run_is_refused_before_anything_is_computed(
    read_only: Path, tiny_study: Path, cli: Callable[..., Answer]
) -> None:
    with pytest.raises(
        UserError, match=r"cannot be written: Read-only file system|cannot be written: Permission denied"
    ):
        run_study(tiny_study, executor="debug", out=read_only, quiet=True)
    said = cli("run", tiny_study, "--out", read_only)
    assert said.code == 2
    assert said.err.startswith("error: the run folder")
    assert cli("status", read_only).code == 0

"""Node-local copies of weights: one for all tasks of a node, checked, and gone when the last one leaves."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from slurm import stage as staging
from slurm.node import node_local_folders
from slurm.stage import Stage
from sparsehpc.core.errors import UserError

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4096}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "shared" / "model"
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The only node-local folder there is, on a disk whatever the tests' folder lies on."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(staging, "scratch_folders", lambda environment: [("SLURM_TMPDIR", folder)])
    monkeypatch.setattr(staging, "file_system", lambda path: "ext4")
    return folder


def manifest():
    return {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "mtime_ns": 7}
        for name, data in FILES.items()
    }


@pytest.fixture
def copies(monkeypatch):
    """Names of files that were copied."""
    names, real = [], staging._copy_file

    def copy(origin, place, entry):
        names.append(origin.name)
        real(origin, place, entry)

    monkeypatch.setattr(staging, "_copy_file", copy)
    return names


def test_tasks_of_a_node_share_one_copy_and_the_last_one_removes_it(source, scratch, copies):
    with Stage() as first:
        placed = first.place(source, "d", manifest())
        assert placed.folder.is_relative_to(scratch)
        assert placed.where == "node-local copy (SLURM_TMPDIR), made by this task"
        assert first.place(source, "d", manifest()) is placed
        second = Stage()
        other = second.place(source, "d", manifest())
        assert (other.folder, other.where) == (
            placed.folder,
            "node-local copy (SLURM_TMPDIR), shared with other tasks",
        )
    assert {file.name: file.read_bytes() for file in placed.folder.iterdir()} == FILES, "one still reads it"
    assert sorted(copies) == sorted(FILES)
    second.__exit__()
    assert list(scratch.iterdir()) == []


def test_two_models_of_one_job(source, scratch, copies):
    with Stage() as stage:
        one, other = (stage.place(source, digest, manifest()).folder for digest in ("d", "../e"))
        assert one != other
        assert one.parent == other.parent
        assert one.parent.stat().st_mode & 0o777 == 0o700
    assert len(copies) == 4
    assert list(scratch.iterdir()) == []


def test_one_that_comes_while_another_copies_waits_for_it(source, scratch, copies, monkeypatch):
    at_it, go_on, real = threading.Event(), threading.Event(), staging._copy

    def slow(*words):
        at_it.set()
        assert go_on.wait(30)
        real(*words)

    monkeypatch.setattr(staging, "_copy", slow)
    stages, placed = (Stage(), Stage()), {}

    def place(number):
        placed[number] = stages[number].place(source, "d", manifest())

    threads = [threading.Thread(target=place, args=(number,)) for number in (0, 1)]
    threads[0].start()
    assert at_it.wait(30)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert placed[0].folder == placed[1].folder
    assert len(copies) == 2
    for stage in stages:
        stage.__exit__()
    assert list(scratch.iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from slurm import stage
stage.file_system = lambda path: "ext4"
files = {"a": {"bytes": 1, "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}}
with stage.Stage() as held:
    print(held.place(Path(sys.argv[1]), "other", files).where, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_task_left_is_removed_by_the_next_one(source, scratch, copies):
    """Of the same model it is never trusted: the node may have gone down before all of it was on its disk."""
    (source.parent / "a").write_bytes(b"a")
    killed = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(source.parent)], env={**os.environ, "SPARSEHPC_SCRATCH": str(scratch)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert killed.stdout.readline() == "node-local copy (SPARSEHPC_SCRATCH), made by this task\n"
    [place] = scratch.iterdir()
    [folder] = (path for path in place.iterdir() if path.is_dir())
    with Stage() as stage:
        own = stage.place(source, "d", manifest()).folder
        assert folder.is_dir(), "its task lives"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stdin.close()
        killed.stdout.close()
    assert not own.exists()
    shutil.copytree(folder, own)
    own.with_suffix(".lock").touch()
    with Stage() as stage:
        assert stage.place(source, "d", manifest()).folder == own
        assert not folder.exists()
        assert {file.name: file.read_bytes() for file in own.iterdir()} == FILES
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + b"x", lambda data: data + b"x"])
def test_a_file_that_is_not_what_its_checksum_says_is_an_error_and_leaves_nothing(source, scratch, change):
    path = source / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with Stage() as stage, pytest.raises(UserError, match="is damaged or was changed") as caught:
        stage.place(source, "d", manifest())
    assert caught.value.hint
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", ".", ""])
def test_names_of_a_manifest_never_leave_the_folder(source, scratch, name):
    with Stage() as stage, pytest.raises(UserError, match="which is no file beside it"):
        stage.place(source, "d", {name: {"bytes": 0, "sha256": ""}})
    assert list(scratch.iterdir()) == []


def test_without_room_the_next_folder_serves_and_at_last_the_original(source, scratch, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    chain = [("SLURM_TMPDIR", scratch), ("TMPDIR", other), ("the system's folder", other)]
    monkeypatch.setattr(staging, "scratch_folders", lambda environment: chain)
    real, full = os.statvfs, {scratch}

    def statvfs(folder):
        found = list(real(folder))
        if folder.parent in full:
            found[4] = ((1 << 29) + (1 << 30)) // found[1]  # free blocks for this user
        return os.statvfs_result(found)

    monkeypatch.setattr(staging.os, "statvfs", statvfs)
    monkeypatch.setattr(staging, "LEAVE_BYTES", 2 << 30)
    with Stage() as stage:
        assert stage.place(source, "d", manifest()).where == "node-local copy (TMPDIR), made by this task"
    full.add(other)
    with Stage() as stage:
        placed = stage.place(source, "d", manifest())
        assert placed.folder == source
        assert placed.where.startswith("in place; SLURM_TMPDIR: 1.5 GiB free, 0.0 GiB and 2 to spare are needed; TMP")
        assert str(tmp_path) not in placed.where
    assert [*scratch.iterdir(), *other.iterdir()] == []


@pytest.mark.parametrize("kind", ["tmpfs", "nfs4", "lustre", "beegfs", "fuse.glusterfs"])
def test_memory_and_network_file_systems_are_no_place_unless_somebody_says_so(source, scratch, kind, monkeypatch):
    monkeypatch.setattr(staging, "file_system", lambda path: kind)
    with Stage() as stage:
        placed = stage.place(source, "d", manifest())
        assert (placed.folder, placed.where) == (source, f"in place; SLURM_TMPDIR: a file system of type {kind}")
    monkeypatch.setattr(staging, "scratch_folders", lambda environment: [("SPARSEHPC_SCRATCH", scratch)])
    with Stage() as stage:
        assert stage.place(source, "d", manifest()).folder != source


def test_a_folder_that_others_could_write_is_not_used(source, scratch):
    place = scratch / f"sparsehpc-weights-{os.getuid()}"
    place.mkdir()
    place.chmod(0o770)
    with Stage() as stage:
        assert "open to others" in stage.place(source, "d", manifest()).where
    place.rmdir()
    place.symlink_to(source)
    with Stage() as stage:
        assert "another user's" in stage.place(source, "d", manifest()).where
    assert sorted(file.name for file in source.iterdir()) == sorted(FILES)


def test_an_error_of_the_node_is_no_error_of_the_job(source, scratch, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "_copy_file", broken)
    with Stage() as stage:
        placed = stage.place(source, "d", manifest())
        assert (placed.folder, placed.where) == (source, "in place; SLURM_TMPDIR: No space left on device")
    assert list(scratch.iterdir()) == []


def test_a_job_that_is_ended_while_it_copies_leaves_nothing(source, scratch, monkeypatch):
    def ended(*_):
        raise SystemExit(1)

    monkeypatch.setattr(staging, "_copy_file", ended)
    with pytest.raises(SystemExit), Stage() as stage:
        stage.place(source, "d", manifest())
    assert list(scratch.iterdir()) == []


def test_what_tasks_share_lies_beside_their_own_folders(source, tmp_path, monkeypatch):
    for variable in staging.scratch_folders.__globals__["SCRATCH_VARIABLES"]:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(staging, "file_system", lambda path: "ext4")
    with node_local_folders() as own, Stage() as stage:
        placed = stage.place(source, "d", manifest())
        assert own.parent == tmp_path
        assert placed.folder.parent == tmp_path / f"sparsehpc-weights-{os.getuid()}"
        assert "(TMPDIR)" in placed.where


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_nothing_is_copied_unless_it_is_asked_for(value, wanted):
    assert Stage({} if value is None else {"SPARSEHPC_STAGE": value}).wanted is wanted

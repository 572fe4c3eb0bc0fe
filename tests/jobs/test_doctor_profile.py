"""Verdicts of ``doctor --profile``: what a node says about itself, broken one thing at a time."""

from __future__ import annotations

import copy
import os
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.doctor_profile import _judge
from slurm import checks
from slurm.resources import Resources

ASKED = Resources(name="cpu", cpus=2)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this machine would answer as a node that gives just what was asked."""
    found = {**checks.look(tmp_path_factory.mktemp("node")), "affinity": 2}
    found["machine"] |= {"cores_usable": 2, "physical_cores": 2}
    return found


def verdicts(found: dict[str, Any], asked: Resources = ASKED) -> dict[str, tuple[str, str, str]]:
    judged = _judge({**found, "time": found.get("time_is", time.time())}, asked)
    return {check.name.partition(": ")[2]: (check.verdict, check.detail, check.advice) for check in judged}


def test_a_healthy_node(healthy: dict[str, Any]) -> None:
    assert {name: verdict for name, (verdict, _, _) in verdicts(healthy).items() if verdict != "ok"} == {}


def _version(found: dict[str, Any]) -> None:
    found["software"]["versions"]["torch"] = "1.0"


def _code(found: dict[str, Any]) -> None:
    found["software"]["code_digest"] = "0" * 64


def _threads(found: dict[str, Any]) -> None:
    found["machine"].update(cores_usable=8, physical_cores=4)


def _feature(found: dict[str, Any]) -> None:
    found["machine"]["cpu_features"] = found["machine"]["cpu_features"][:3]


@pytest.mark.parametrize(
    ("change", "name", "verdict", "words"),
    [
        (_version, "versions", "wrong", "other than here: torch"),
        (_code, "versions", "wrong", "other than here: code_digest"),
        (lambda f: f["imports"].update(torch="OSError: libgomp.so"), "imports", "wrong", "torch: OSError: libgomp.so"),
        (lambda f: f.update(affinity=1), "cores", "wrong", "1 usable, 2 asked"),
        (lambda f: f.update(affinity=64), "cores", "note", "64 usable, 2 asked"),
        (lambda f: f.update(time_is=time.time() - 3600), "clock", "note", "differs by -3600 s"),
        (lambda f: f.update(time_is=time.time() + 86400), "clock", "note", "differs by 86400 s"),
        (lambda f: f.update(write="Read-only file system"), "this folder", "wrong", "Read-only file system"),
        (lambda f: f.update(write="fewer than 1000 free inodes"), "this folder", "wrong", "free inodes"),
        (_threads, "threads of cores", "note", "8 usable CPUs are 4 cores"),
        (_feature, "processor", "note", "lacks what this machine has"),
    ],
)
def test_each_fault_is_found_alone(
    healthy: dict[str, Any], change: Callable[[dict[str, Any]], None], name: str, verdict: str, words: str
) -> None:
    found = copy.deepcopy(healthy)
    change(found)
    judged = verdicts(found)
    wrong = {key: value for key, value in judged.items() if value[0] != "ok"}
    assert set(wrong) == {name}, wrong
    assert wrong[name][0] == verdict
    assert words in wrong[name][1]
    assert wrong[name][2] or (name, verdict) == ("cores", "note"), "what to do"


@pytest.mark.parametrize(("gpus", "verdict"), [(["A100"], "ok"), ([], "wrong"), (["A100", "A100"], "wrong")])
def test_gpus_that_were_asked_for(healthy: dict[str, Any], gpus: list[str], verdict: str) -> None:
    found = {**healthy, "gpus": gpus, "visible": "0"}
    assert verdicts(found, Resources(name="gpu", cpus=2, gpus=1))["GPUs"][0] == verdict


def test_a_node_of_an_older_program_is_judged_too(healthy: dict[str, Any]) -> None:
    found = copy.deepcopy(healthy)
    del found["machine"]["physical_cores"]
    assert "threads of cores" not in verdicts(found)


def test_gpus_are_named_with_what_tells_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of one kind; torch before it knew of them says none."""
    import torch

    parts = [types.SimpleNamespace(uuid="f8a1c1de-0000-1111-2222-333344445555"), types.SimpleNamespace()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", parts.__getitem__)
    assert checks._gpus() == ["H100 (uuid f8a1c1de-0000-1111-2222-333344445555)", "H100 (uuid unknown)"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks._gpus() == []


def test_a_node_that_cannot_write_or_has_no_inodes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks._write(tmp_path) == ""
    assert "No such file" in checks._write(tmp_path / "gone")
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[5:8] = [100_000, 999, 999]  # files, free, free for this user
    monkeypatch.setattr("slurm.checks.os.statvfs", lambda folder: os.statvfs_result(fields))
    assert "free inodes" in checks._write(tmp_path)
    assert list(tmp_path.iterdir()) == []

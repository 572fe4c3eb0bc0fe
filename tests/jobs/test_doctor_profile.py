"""Verdicts of ``doctor --profile``: what a node says about itself, broken one thing at a time."""

from __future__ import annotations

import copy
import os
import time
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
    return {**checks.look(tmp_path_factory.mktemp("node")), "affinity": 2}


def verdicts(found: dict[str, Any], asked: Resources = ASKED) -> dict[str, tuple[str, str, str]]:
    judged = _judge({**found, "time": found.get("time_is", time.time())}, asked)
    return {check.name.partition(": ")[2]: (check.verdict, check.detail, check.advice) for check in judged}


def test_a_healthy_node(healthy: dict[str, Any]) -> None:
    assert {name: verdict for name, (verdict, _, _) in verdicts(healthy).items() if verdict != "ok"} == {}


def _version(found: dict[str, Any]) -> None:
    found["software"]["versions"]["torch"] = "1.0"


def _code(found: dict[str, Any]) -> None:
    found["software"]["code_digest"] = "0" * 64


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


def test_a_node_that_cannot_write_or_has_no_inodes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks._write(tmp_path) == ""
    assert "No such file" in checks._write(tmp_path / "gone")
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[5:8] = [100_000, 999, 999]  # files, free, free for this user
    monkeypatch.setattr("slurm.checks.os.statvfs", lambda folder: os.statvfs_result(fields))
    assert "free inodes" in checks._write(tmp_path)
    assert list(tmp_path.iterdir()) == []

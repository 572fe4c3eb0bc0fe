"""Modes of files follow the user's umask, which is looked at without changing it for other threads."""

import os
import stat
from pathlib import Path

import pytest

from sparsehpc.core.files import give_usual_mode


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says its umask there")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
def test_the_umask_is_read_and_never_set(tmp_path, monkeypatch, umask, mode):
    path, real = tmp_path / "file", os.umask
    path.touch(0o600)
    before = real(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda value: pytest.fail("other threads would see this umask"))
            give_usual_mode(path)
    finally:
        assert real(before) == umask
    assert stat.S_IMODE(path.stat().st_mode) == mode

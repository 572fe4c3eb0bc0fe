"""Which file system holds a path, by the kernel's own list."""

import os
from pathlib import Path

import pytest

from sparsehpc.core.machine import file_system

LIST = """\
22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:31 / /home rw shared:1 - nfs4 server:/home rw
31 30 0:32 / /home/a\\040b rw - tmpfs tmpfs rw
32 30 0:33 / /home/a\\040b rw - lustre other rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/usr", "ext4"), ("/home/x", "nfs4"), ("/homes", "ext4"), ("/home/a b/run", "lustre"), ("/", "ext4")],
)
def test_the_innermost_and_latest_mount_counts(path, kind, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, **options: LIST)
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    assert file_system(Path(path)) == kind


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc")
def test_the_real_list_is_read():
    assert file_system(Path("/proc/self")) == "proc"

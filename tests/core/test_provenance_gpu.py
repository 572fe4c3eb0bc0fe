"""Which GPU computed a cell, and at which clocks: recorded where there is one."""

import os
import types

import pytest

from sparsehpc.core.machine import gpu_clocks_mhz, gpu_power_limit_w
from sparsehpc.core.provenance import machine

UUID = "f8a1c1de-0000-1111-2222-333344445555"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A stand-in for the driver's tool that answers for one GPU."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = "--id=GPU-{UUID}" ] || exit 6\n'
        'case "$2" in\n'
        "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem) echo '1755, 1980, 2619';;\n"
        "--query-gpu=power.limit) echo 650.00;;\n"
        "*) exit 2;;\n"
        "esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tool


def test_clocks_and_the_power_limit_are_read(nvidia_smi):
    assert gpu_clocks_mhz(UUID) == {"cores": 1755, "cores_most": 1980, "memory": 2619}
    assert gpu_power_limit_w(UUID) == 650.0


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho '[N/A], 1, 2'\n", "#!/bin/sh\necho 1, 2\n"])
def test_no_clear_answer_is_none(nvidia_smi, text):
    assert (gpu_clocks_mhz("another"), gpu_power_limit_w("another")) == ({}, None)
    nvidia_smi.write_text(text)
    assert (gpu_clocks_mhz(UUID), gpu_power_limit_w(UUID)) == ({}, None)


def test_a_cell_row_names_the_gpu(nvidia_smi, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU of a test")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: types.SimpleNamespace(uuid=UUID))
    found = machine()
    assert (found["device"], found["gpu_uuid"]) == ("GPU of a test", UUID)
    assert found["gpu_clocks_mhz"]["cores"] == 1755
    assert found["gpu_power_limit_w"] == 650.0


def test_without_a_gpu_nothing_is_said():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "gpu_uuid" not in machine()

"""Safetensors headers, plain reads and shards, held against the library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsehpc.core.errors import UserError
from sparsehpc.models.weight_files import ShardWriter, headers_of, read_header, read_tensors


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(5, 7, generator=generator)
    return {
        "f32": base,
        "f16": base.half(),
        "bf16": base.bfloat16(),
        "f64": base.double(),
        "i8": torch.arange(-3, 4, dtype=torch.int8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }


def test_header_and_reads_equal_the_library(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    save_file(tensors, str(path))
    headers = read_header(path)
    assert {n: (h.shape, h.dtype) for n, h in headers.items()} == {
        n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()
    }
    read = read_tensors(tmp_path, headers)
    for name, expected in load_file(str(path)).items():
        assert read[name].dtype == expected.dtype
        assert torch.equal(read[name], expected)


def test_nothing_stays_mapped(tmp_path, tensors):
    path = tmp_path / "mapped.safetensors"
    save_file(tensors, str(path))
    read = read_tensors(tmp_path, read_header(path))
    assert str(path) not in Path("/proc/self/maps").read_text()
    path.write_bytes(b"")
    assert torch.equal(read["f32"], tensors["f32"])


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated(tmp_path, tensors, keep):
    path = tmp_path / "a.safetensors"
    save_file(tensors, str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"a\.safetensors is (truncated|no readable)"):
        read_header(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x10" + b"\0" * 7 + b"not json at all!",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
    ],
)
def test_garbage(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors is"):
        read_header(path)


def test_extra_bytes(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    save_file(tensors, str(path))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="truncated or damaged"):
        read_header(path)


def test_truncated_between_header_and_read(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    save_file(tensors, str(path))
    headers = read_header(path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match="truncated"):
        read_tensors(tmp_path, headers)


def test_shards_hold_everything_and_transformers_index(tmp_path):
    writer = ShardWriter(tmp_path, shard_bytes=1000)
    expected = {f"t{i}": torch.full((100,), float(i)) for i in range(7)}
    for name, tensor in expected.items():
        writer.add(name, tensor)
    writer.close()
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert not list(tmp_path.glob("*.part"))
    read = read_tensors(tmp_path, headers_of(tmp_path, files))
    assert {n: t.tolist() for n, t in read.items()} == {n: t.tolist() for n, t in expected.items()}


def test_name_in_two_files(tmp_path, tensors):
    for name in ("a", "b"):
        save_file({"x": tensors["f32"]}, str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(UserError, match="tensor x is in both"):
        headers_of(tmp_path, ["a.safetensors", "b.safetensors"])

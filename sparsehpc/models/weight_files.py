"""Safetensors files: headers without torch, tensors by plain sequential reads, and shards written as they fill.

A mapped file's pages count as memory of the process while the map lives, and mapping is slow on network file
systems. Tensors are therefore read with ``readinto`` straight into their own memory, in the order they lie in the
file, and the file is closed again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sparsehpc.core.errors import UserError
from sparsehpc.core.files import give_usual_mode

if TYPE_CHECKING:
    import torch

#: Safetensors' names of element types to those of torch, with their bytes.
DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_LONGEST_HEADER_BYTES = 100_000_000
_SHARD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where one tensor lies.

    Parameters
    ----------
    shape, dtype
        As stored; ``dtype`` is torch's name.
    file
        Name of the file inside its folder.
    offset, nbytes
        Bytes from the start of the file, and how many.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Header of one safetensors file, checked against the file's length.

    Raises
    ------
    UserError
        The file is missing, truncated, longer than its header says, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_LONGEST_HEADER_BYTES, size - 8):
                raise UserError(f"{path} is truncated or no safetensors file ({size} bytes)")
            raw = json.loads(file.read(length))
        headers = {
            name: _tensor_header(path.name, 8 + length, entry) for name, entry in raw.items() if name != "__metadata__"
        }
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no readable safetensors file: {error}") from error
    end = max((h.offset + h.nbytes for h in headers.values()), default=8 + length)
    if end != size:
        raise UserError(f"{path} is truncated or damaged: {size} bytes, its header describes {end}")
    return headers


def _tensor_header(file: str, start: int, entry: Mapping[str, Any]) -> TensorHeader:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"unsupported element type {entry['dtype']!r}; supported: {', '.join(DTYPES)}")
    dtype, width = DTYPES[entry["dtype"]]
    shape = tuple(int(n) for n in entry["shape"])
    begin, end = (int(n) for n in entry["data_offsets"])
    if end - begin != math.prod(shape) * width or begin < 0:
        raise ValueError(f"shape {shape} of {dtype} does not fill {end - begin} bytes")
    return TensorHeader(shape, dtype, file, start + begin, end - begin)


def read_tensors(folder: Path, headers: Mapping[str, TensorHeader]) -> dict[str, torch.Tensor]:
    """Read tensors of any number of files, each file once and in the order of its bytes.

    Returns
    -------
    dict
        Tensors on the CPU in the dtype they are stored in, in the order of ``headers``.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted({h.file for h in headers.values()}):
        here = sorted((h.offset, name) for name, h in headers.items() if h.file == file)
        try:
            with (folder / file).open("rb") as handle:
                for offset, name in here:
                    header = headers[name]
                    tensor = torch.empty(header.shape, dtype=getattr(torch, header.dtype))
                    handle.seek(offset)
                    _fill(handle, tensor, header.nbytes, folder / file)
                    tensors[name] = tensor
        except OSError as error:
            raise UserError(f"{folder / file} cannot be read: {error}") from error
    return {name: tensors[name] for name in headers}


def _fill(file: BinaryIO, tensor: torch.Tensor, nbytes: int, path: Path) -> None:
    import torch

    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    view, done = memoryview(array), 0
    while done < nbytes:
        # One call reads at most 2 GiB on Linux; network file systems may return less.
        read = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not read:
            raise UserError(f"{path} is truncated: {nbytes - done} bytes of a tensor are missing")
        done += read


class ShardWriter:
    """Write tensors one by one into safetensors shards, never holding more than one shard.

    Parameters
    ----------
    folder
        Existing folder; gets ``model.safetensors``, or numbered shards and ``model.safetensors.index.json``, named
        as transformers names them.
    shard_bytes
        A shard is written once it holds this much.
    """

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor."""
        self._pending[name] = tensor.detach().contiguous()
        self._pending_bytes += tensor.numel() * tensor.element_size()
        if self._pending_bytes >= self.shard_bytes:
            self._flush()

    def _temporary(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.part"

    def _flush(self) -> None:
        from safetensors.torch import save_file

        shard = self._temporary(len(self._shards))
        save_file(self._pending, str(shard), metadata={"format": "pt"})
        give_usual_mode(shard)
        self._shards.append(list(self._pending))
        self._bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def close(self) -> None:
        """Write what is left, give the shards their final names and write the index."""
        if self._pending or not self._shards:
            self._flush()
        count = len(self._shards)
        if count == 1:
            self._temporary(0).rename(self.folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for shard, names in enumerate(self._shards):
            final = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
            self._temporary(shard).rename(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": weight_map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def headers_of(folder: Path, files: Iterable[str]) -> dict[str, TensorHeader]:
    """Headers of several files of one folder together; a name in two files is an error."""
    merged: dict[str, TensorHeader] = {}
    for file in sorted(files):
        for name, header in read_header(folder / file).items():
            if name in merged:
                raise UserError(f"{folder}: tensor {name} is in both {merged[name].file} and {file}")
            merged[name] = header
    return merged

"""Published checkpoints as they come: safetensors or pickles, sharded or not, with the names of any age.

Names are brought to those that transformers uses today, tensors that the model does not own (rotary buffers, causal
masks, the copy of a tied head) are left out, and pickles are read with ``weights_only``: nothing in them is executed.
"""

from __future__ import annotations

import collections
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.models.family import family_of, structure_from_config
from sparsehpc.models.weight_files import ShardWriter, TensorHeader, headers_of, read_tensors

if TYPE_CHECKING:
    import torch

_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
_PROBLEMS_SHOWN = 10


def weight_file_names(folder: Path) -> list[str]:
    """Names of the weight files of a checkpoint, safetensors preferred, by its index where it has one.

    Raises
    ------
    UserError
        There are none, or files that the index names are missing.
    """
    for single in (_SAFETENSORS, _PICKLE):
        index = folder / f"{single}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / single).is_file():
            return [single]
    loose = sorted(file.name for file in folder.glob("*.safetensors"))
    if loose:
        return loose
    raise UserError(
        f"{folder} holds no weights: {_SAFETENSORS} or {_PICKLE} (or their shards with an index) are expected"
    )


def _indexed(index: Path) -> list[str]:
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} cannot be read: {error}") from error
    unsafe = [name for name in files if not isinstance(name, str) or Path(name).name != name]
    if unsafe:
        raise UserError(f"{index} names {unsafe[0]!r}, which is no file beside it")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise UserErrors(f"{index.parent}", [f"shard {name} is missing" for name in missing])
    return files


class Checkpoint:
    """Weights in a folder, under transformers' names.

    Parameters
    ----------
    folder
        Holds config.json and weights.
    config
        Content of config.json.

    Raises
    ------
    UserError
        Files are missing or damaged; a parameter is missing, has another shape or is no floating-point tensor.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.files = weight_file_names(folder)
        self.structure = structure_from_config(config)
        self._family = family_of(config)
        self._is_pickle = not self.files[0].endswith(".safetensors")
        self._headers: dict[str, TensorHeader] = {}
        self._pickled: dict[str, torch.Tensor] = {}
        if self._is_pickle:
            for file in self.files:
                self._pickled |= _load_pickle(folder / file)
            stored = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in self._pickled.items()}
        else:
            self._headers = headers_of(folder, self.files)
            stored = {name: (h.shape, h.dtype) for name, h in self._headers.items()}
        self._stored = self._by_canonical_name(stored)
        tied = {p.name for p in self.structure.parameters if p.tied_to}
        #: Stored tensors that are no parameters, and no copies of a tied one.
        self.left_out = sorted(set(stored) - set(self._stored.values()) - tied)
        self._check({name: stored[theirs] for name, theirs in self._stored.items()})
        weights: collections.Counter[str] = collections.Counter()
        for parameter in self.structure.unique:
            weights[stored[self._stored[parameter.name]][1]] += parameter.numel
        #: Type of most weights.
        self.dtype = weights.most_common(1)[0][0]

    @property
    def bytes(self) -> int:
        """Bytes of the weight files as published."""
        return sum((self.folder / file).stat().st_size for file in self.files)

    @property
    def usable_as_is(self) -> bool:
        """Whether the files can serve as a snapshot's: safetensors under transformers' names."""
        return not self._is_pickle and all(name == theirs for name, theirs in self._stored.items())

    def _by_canonical_name(self, stored: Mapping[str, Any]) -> dict[str, str]:
        """Parameter name to stored name; an exact name wins over one that had to be changed."""
        wanted = {p.name for p in self.structure.unique}
        found = {name: name for name in stored if name in wanted}
        for name in stored:
            renamed = name
            for pattern, replacement in self._family.renames:
                renamed = re.sub(pattern, replacement, renamed)
            for candidate in (renamed, self._family.prefix + renamed):
                if candidate in wanted and candidate not in found:
                    found[candidate] = name
        return found

    def _check(self, stored: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        problems = []
        for parameter in self.structure.unique:
            if parameter.name not in stored:
                problems.append(f"{parameter.name} is missing")
                continue
            shape, dtype = stored[parameter.name]
            if shape != parameter.shape:
                problems.append(f"{parameter.name} has shape {shape}, the config says {parameter.shape}")
            elif dtype not in DTYPE_BYTES:
                problems.append(f"{parameter.name} is {dtype}; {', '.join(DTYPE_BYTES)} are supported")
        if problems:
            shown = "".join(f"\n  - {problem}" for problem in problems[:_PROBLEMS_SHOWN])
            rest = len(problems) - _PROBLEMS_SHOWN
            more = f"\n  and {rest} more" if rest > 0 else ""
            count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
            raise UserError(f"weights in {self.folder}: {count}{shown}{more}")

    def tensor(self, name: str) -> torch.Tensor:
        """One parameter as stored."""
        theirs = self._stored[name]
        if self._is_pickle:
            return self._pickled[theirs].clone()
        return read_tensors(self.folder, {theirs: self._headers[theirs]})[theirs]

    def convert(self, folder: Path, progress: Callable[[str], object]) -> None:
        """Write every parameter as safetensors into ``folder``, one at a time."""
        writer, announced = ShardWriter(folder), -1
        for parameter in self.structure.unique:
            if parameter.layer is not None and parameter.layer > announced:
                announced = parameter.layer
                progress(f"converting layer {announced + 1} of {self.structure.layers}")
            writer.add(parameter.name, self.tensor(parameter.name))
        writer.close()


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a pickle, mapped where the file allows it."""
    import torch

    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Files from before PyTorch 1.6 are no archives and cannot be mapped.
            if "mmap can only be used" not in str(error):
                raise
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and is not loaded, because that could run code") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no named tensors")
    return {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}

"""A prepared model on disk: pinned, checksummed, read tensor by tensor.

::

    SPARSEHPC_HOME/models/<safe name>/<revision>/
        snapshot.json                what it is and where it came from, bytes and SHA-256 of every file
        config.json  tokenizer.json  tokenizer_config.json  generation_config.json
        model.safetensors, or model-00001-of-0000N.safetensors and model.safetensors.index.json
    SPARSEHPC_HOME/models/<safe name>/refs/<name>      the revision that a branch, or a local file, stood for
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsehpc.core.errors import UserError, UserErrors, unknown
from sparsehpc.core.files import sha256_file
from sparsehpc.models.family import structure_from_config
from sparsehpc.models.home import safe_name
from sparsehpc.models.target import Target, resolve
from sparsehpc.models.weight_files import TensorHeader, headers_of, read_tensors

if TYPE_CHECKING:
    import torch

    from sparsehpc.models.structure import Structure

MANIFEST = "snapshot.json"
MANIFEST_VERSION = 1
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One prepared model.

    Parameters
    ----------
    path
        Its folder; transformers' ``from_pretrained`` loads it.
    model
        What a study calls it.
    revision
        Commit of a hub model; None elsewhere.
    trained
        Whether its weights were learned; False for ``random:`` models.
    published_dtype
        Type the checkpoint was published in, the reference for "dense, as published".
    source_bytes
        Bytes of the weights as published (the GGUF file, the hub's weight files).
    digest
        SHA-256 over the checksums of all files: names the content.
    files
        File name to ``{"bytes": ..., "sha256": ...}``; a linked file has ``mtime_ns`` too, so that a change is noticed.
    source
        Where it came from: ``kind`` and what that kind needs to find it again.
    config
        Content of config.json.
    """

    path: Path
    model: str
    revision: str | None
    trained: bool
    published_dtype: str
    source_bytes: int
    digest: str
    files: Mapping[str, Mapping[str, Any]]
    source: Mapping[str, Any]
    config: Mapping[str, Any]

    @functools.cached_property
    def structure(self) -> Structure:
        """Every parameter by role."""
        return structure_from_config(self.config)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the safetensors files, sorted."""
        return tuple(sorted(name for name in self.files if name.endswith(".safetensors")))

    @functools.cached_property
    def _headers(self) -> dict[str, TensorHeader]:
        try:
            self._check_sizes()
            found = headers_of(self.path, self.weight_files)
        except UserError as error:
            raise UserError(error.message, error.hint or self._repair) from error
        wanted = self.structure.unique
        problems = [f"{p.name} is missing" for p in wanted if p.name not in found]
        problems += [
            f"{p.name} has shape {found[p.name].shape}, the config says {p.shape}"
            for p in wanted
            if p.name in found and found[p.name].shape != p.shape
        ]
        problems += [
            f"{p.name} is stored as {found[p.name].dtype}, not as one of {', '.join(_FLOATS)}"
            for p in wanted
            if p.name in found and found[p.name].dtype not in _FLOATS
        ]
        if problems:
            raise UserErrors(f"weights of {self.model} in {self.path}", problems, self._repair)
        return {p.name: found[p.name] for p in wanted}

    @property
    def _repair(self) -> str:
        return f"sparsehpc prepare {self.model} makes it again"

    def _check_sizes(self) -> None:
        for name, entry in self.files.items():
            file = self.path / name
            if not file.is_file():
                raise UserError(f"{file} is missing")
            status = file.stat()
            if status.st_size != entry["bytes"]:
                raise UserError(
                    f"{file} is truncated or was changed: {status.st_size} bytes, expected {entry['bytes']}"
                )
            if status.st_mtime_ns != entry.get("mtime_ns", status.st_mtime_ns):
                raise UserError(f"{file.resolve()} was changed since {self.model} was prepared")

    def headers(self) -> dict[str, tuple[tuple[int, ...], str, str]]:
        """Shape, dtype and file of every unique parameter, in module order, without torch.

        Raises
        ------
        UserError
            A file is missing, truncated or changed in length; a parameter is missing or has another shape.
        """
        return {name: (h.shape, h.dtype, h.file) for name, h in self._headers.items()}

    def read(self, names: Iterable[str], dtype: str | None = None, device: str = "cpu") -> dict[str, torch.Tensor]:
        """Read parameters by name; nothing of the files stays open or mapped.

        Parameters
        ----------
        names
            Parameter names; a tied one is read from the parameter that it shares.
        dtype
            Type to convert to, rounding to nearest; None leaves each as stored.
        device
            Where the tensors end up.

        Returns
        -------
        dict
            A fresh tensor for every name, in the order asked for.
        """
        import torch

        names = list(names)
        owners = {p.name: p.tied_to or p.name for p in self.structure.parameters}
        if missing := [name for name in names if name not in owners]:
            raise UserError(unknown(f"parameter of {self.model}", missing[0], owners))
        headers = self._headers
        tensors = read_tensors(self.path, {owners[name]: headers[owners[name]] for name in names})
        target = None if dtype is None else getattr(torch, dtype)
        return {name: tensors[owners[name]].to(device=device, dtype=target) for name in names}

    def verify(self) -> None:
        """Compare every file with its checksum; all differences are reported at once."""
        problems = []
        for name, entry in self.files.items():
            file = self.path / name
            if not file.is_file():
                problems.append(f"{file} is missing")
            elif file.stat().st_size != entry["bytes"]:
                problems.append(f"{file}: {file.stat().st_size} bytes, expected {entry['bytes']}")
            elif (found := sha256_file(file)) != entry["sha256"]:
                problems.append(f"{file}: checksum {found[:12]}..., expected {entry['sha256'][:12]}...")
        if problems:
            raise UserErrors(f"snapshot of {self.model}", problems, self._repair)
        self.headers()

    @classmethod
    def load(cls, folder: Path) -> Snapshot:
        """Open a folder that `seal` finished; `UserError` if its manifest or config cannot be read."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if manifest["version"] != MANIFEST_VERSION:
                raise ValueError(f"version {manifest['version']}, this program reads {MANIFEST_VERSION}")
            fields = {f.name: manifest[f.name] for f in dataclasses.fields(cls) if f.name not in ("path", "config")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} is no readable snapshot: {error}", "sparsehpc prepare MODEL makes one"
            ) from error
        return cls(path=folder, config=config, **fields)


def snapshot_folder(target: Target) -> Path | None:
    """Folder of a prepared model, or None where there is none."""
    if target.kind == "folder" and target.path is not None and (target.path / MANIFEST).is_file():
        return target.path
    candidates = [] if target.revision is None else [target.folder / safe_name(target.revision)]
    with contextlib.suppress(OSError):
        candidates.append(target.folder / safe_name(target.reference.read_text(encoding="utf-8").strip()))
    for folder in candidates:
        if (folder / MANIFEST).is_file():
            return folder
    return None


def open_snapshot(model: str, revision: str | None = None) -> Snapshot:
    """Open a prepared model.

    Parameters
    ----------
    model, revision
        As in a study file; see `sparsehpc.models.target.resolve`.

    Raises
    ------
    UserError
        The model is unknown or not prepared; the command that prepares it is given.
    """
    target = resolve(model, revision)
    folder = snapshot_folder(target)
    if folder is None:
        raise UserError(f"{target.model} is not prepared (looked in {target.folder})", prepare_command(target))
    return dataclasses.replace(Snapshot.load(folder), model=target.model)


def is_prepared(model: str, revision: str | None = None) -> bool:
    """Whether `open_snapshot` would find the model."""
    return snapshot_folder(resolve(model, revision)) is not None


def prepare_command(target: Target) -> str:
    """Say which command prepares a model, and where to run it."""
    command = f"sparsehpc prepare {shlex.quote(target.model)}"
    if target.kind != "hub":
        return f"run: {command}"
    pinned = target.shipped.revision if target.shipped else "main"
    if target.revision != pinned:
        command += f" --revision {shlex.quote(str(target.revision))}"
    return f"run, where there is internet and with the same SPARSEHPC_HOME: {command}"


def structure_of(model: str, revision: str | None = None) -> Structure:
    """Every parameter of a model by role, without torch and, where its config ships, without a snapshot.

    Raises
    ------
    UserError
        The model is unknown, or its config is not known before it is prepared.
    """
    target = resolve(model, revision)
    folder = snapshot_folder(target)
    if folder is not None:
        return Snapshot.load(folder).structure
    config = target.config()
    if config is None:
        raise UserError(f"the shape of {target.model} is known only once it is prepared", prepare_command(target))
    return structure_from_config(config)

"""A pruned model on disk: packed arrays, how they were made, and everything to run them, in one folder.

::

    DIR/
        sparsehpc.json               recipe, formats, sizes, checksums; written last
        layer-0000.safetensors ...   one file per decoder layer
        outside.safetensors          embeddings, final norm, head
        config.json  generation_config.json  tokenizer.json ...

A stored linear ``NAME`` is kept as its arrays ``NAME.values``, ``NAME.mask``, ...; any other tensor under its own
name. Nothing is padded: the files hold the bytes that the accounting counts, and a header each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.files import sha256_file
from sparsehpc.core.spec import DTYPES
from sparsehpc.formats.base import FORMATS
from sparsehpc.models.family import structure_from_config
from sparsehpc.models.structure import bias_parameter
from sparsehpc.models.target import read_config
from sparsehpc.models.weight_files import TensorHeader, headers_of, read_tensors

if TYPE_CHECKING:
    import torch

    from sparsehpc.formats.base import Stored
    from sparsehpc.models.assemble import Section
    from sparsehpc.models.structure import Parameter

MANIFEST = "sparsehpc.json"
MANIFEST_VERSION = 1
_PROBLEMS_SHOWN = 10


def section_file(layer: int | None) -> str:
    """Name of the file of one decoder layer, or of what lies outside."""
    return "outside.safetensors" if layer is None else f"layer-{layer:04d}.safetensors"


def pack(name: str, stored: Stored) -> dict[str, torch.Tensor]:
    """Arrays of a stored linear by the names they have in a file."""
    return {f"{name}.{key}": array.contiguous().cpu() for key, array in stored.components().items()}


class PackedModel:
    """A folder that `write_packed` wrote.

    Parameters
    ----------
    folder
        The folder.
    verify
        Compare every weight file with its checksum first.

    Attributes
    ----------
    manifest
        Content of sparsehpc.json.
    structure
        The model's parameters, from its config.json.
    dtype
        Type that stored weights decode to.
    formats
        Format of every stored linear, by weight name.
    added_biases
        Names of biases that the config does not know.

    Raises
    ------
    UserError
        Something is missing, damaged or does not fit: sizes and shapes come from the config, not from the manifest.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.structure = structure_from_config(read_config(self.folder))
        self.dtype: str = self.manifest["dtype"]
        # Methods may give a bias to linears that had none.
        added = [bias_parameter(p) for p in self.structure.parameters if p.kind == "linear"]
        known = {p.name: p for p in (*added, *self.structure.parameters)}
        problems = []
        if self.dtype not in DTYPES:
            problems.append(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        self.formats: dict[str, str] = {}
        for name, entry in self.manifest["tensors"].items():
            form = entry.get("format") if isinstance(entry, dict) else None
            if name not in known or known[name].kind != "linear":
                problems.append(f"{name} is no linear weight of this model")
            elif not isinstance(form, str) or form not in FORMATS:
                problems.append(f"{name} is stored as {form!r}, which is no format of this version")
            else:
                self.formats[name] = form
        files = {section_file(layer): layer for layer in (*range(self.structure.layers), None)}
        problems += [f"{name} is missing from the manifest" for name in files if name not in self.manifest["files"]]
        self._fail(problems)
        self._check_files(files, verify)
        self._headers = headers_of(self.folder, files)
        self._known = known
        self._arrays = self._by_parameter(known)
        self.added_biases = sorted(set(self._arrays) - {p.name for p in self.structure.parameters})

    def sections(self) -> Iterator[Section]:
        """Weights, section by section; each is read when it is asked for.

        Raises
        ------
        UserError
            Arrays of a stored linear contradict each other or the model.
        """
        from sparsehpc.models.assemble import Section

        for layer in (*range(self.structure.layers), None):
            plain: dict[str, torch.Tensor] = {}
            stored: dict[str, Stored] = {}
            parameters = [p for p in self._known.values() if p.layer == layer and p.name in self._arrays]
            wanted = {key: header for p in parameters for key, header in self._arrays[p.name].values()}
            tensors = read_tensors(self.folder, wanted)
            for parameter in parameters:
                arrays = {part: tensors.pop(key) for part, (key, _) in self._arrays[parameter.name].items()}
                if parameter.name in self.formats:
                    stored[parameter.name] = self._stored(parameter, arrays)
                else:
                    plain[parameter.name] = arrays[""]
            yield Section(layer, plain, stored, {name: self.formats[name] for name in stored})

    def _stored(self, parameter: Parameter, arrays: Mapping[str, torch.Tensor]) -> Stored:
        import torch

        rows, columns = parameter.shape
        try:
            form = FORMATS.get(self.formats[parameter.name])
            return form.from_components(arrays, (rows, columns), getattr(torch, self.dtype))
        except ValueError as error:
            raise UserError(f"{self.folder}: arrays of {parameter.name} are damaged: {error}") from error

    def _check_files(self, names: Mapping[str, int | None], verify: bool) -> None:
        problems = []
        for name in names:
            file, entry = self.folder / name, self.manifest["files"][name]
            size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
            if not file.is_file():
                problems.append(f"{name} is missing")
            elif file.stat().st_size != size:
                problems.append(f"{name} is truncated or was changed: {file.stat().st_size} bytes, expected {size}")
            elif verify and sha256_file(file) != digest:
                problems.append(f"{name} does not match its checksum")
        self._fail(problems)

    def _by_parameter(self, known: Mapping[str, Parameter]) -> dict[str, dict[str, tuple[str, TensorHeader]]]:
        """Arrays of every parameter: component (empty for a plain tensor) to key and header."""
        found: dict[str, dict[str, tuple[str, TensorHeader]]] = {}
        problems = []
        for key, header in self._headers.items():
            name, _, component = key.rpartition(".")
            if name in self.formats:
                found.setdefault(name, {})[component] = (key, header)
            elif key in known and key not in self.formats:
                found[key] = {"": (key, header)}
                if header.shape != known[key].shape or header.dtype != self.dtype:
                    problems.append(f"{key} is {header.dtype} {header.shape}, expected {self.dtype} {known[key].shape}")
            else:
                problems.append(f"{key} in {header.file} belongs to no parameter")
            owner = known.get(name if name in self.formats else key)
            if owner is not None and header.file != section_file(owner.layer):
                problems.append(f"{key} lies in {header.file} instead of {section_file(owner.layer)}")
        problems += [
            f"{p.name} is missing"
            for p in self.structure.parameters
            if p.name not in found and (p.tied_to is None or p.name in self.formats)
        ]
        self._fail(problems)
        return found

    def _fail(self, problems: list[str]) -> None:
        if problems:
            more = [f"and {len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
            raise UserErrors(f"packed model {self.folder}", problems[:_PROBLEMS_SHOWN] + more)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} holds no packed model ({MANIFEST} is missing)", "sparsehpc prune writes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["version"] != MANIFEST_VERSION:
            raise ValueError(f"version {manifest['version']}, this program reads {MANIFEST_VERSION}")
        kinds = {"dtype": str, "recipe": dict, "tensors": dict, "files": dict, "weights": dict, "software": dict}
        wrong = [key for key, kind in kinds.items() if not isinstance(manifest[key], kind)]
        if wrong:
            raise ValueError(f"{wrong[0]} is no {kinds[wrong[0]].__name__}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error!r}") from error
    result: dict[str, Any] = manifest
    return result

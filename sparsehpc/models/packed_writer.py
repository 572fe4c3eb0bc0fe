"""Write packed models, and plain ones with zeros in place; whole or not at all, never over something."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsehpc.core.errors import UserError
from sparsehpc.core.files import flush_folder, give_usual_mode, sha256_file, write_text
from sparsehpc.core.provenance import software
from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.models.family import structure_from_config
from sparsehpc.models.folder import TOKENIZER_FILES
from sparsehpc.models.packed import MANIFEST, MANIFEST_VERSION, pack, section_file
from sparsehpc.models.target import read_config
from sparsehpc.models.weight_files import ShardWriter

if TYPE_CHECKING:
    import torch

    from sparsehpc.models.assemble import Section
    from sparsehpc.models.packed import PackedModel
    from sparsehpc.models.structure import Structure
    from sparsehpc.pruning.shrink import Smaller

Recipe = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

#: What `densify` leaves of the manifest beside the plain weights.
RECIPE = "sparsehpc-recipe.json"


def write_packed(
    folder: Path, origin: Path, structure: Structure, dtype: str, sections: Iterable[Section], recipe: Recipe
) -> dict[str, Any]:
    """Write a packed model.

    Parameters
    ----------
    folder
        Where to; it must not exist yet, or be empty.
    origin
        Folder of config.json and the tokenizer, which are copied.
    structure
        The model's parameters.
    dtype
        Type that stored weights decode to.
    sections
        Weights, section by section; each is written before the next is asked for.
    recipe
        How they were made; called after the last section where it is a function.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    UserError
        The folder holds something, or cannot be written.
    """
    tensors: dict[str, dict[str, str]] = {}
    files: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    weights = {"stored": 0, "nonzero": 0}
    with new_folder(folder) as staging:
        for section in sections:
            path = staging / section_file(section.layer)
            _write_section(path, section, tensors, sizes, weights)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            del section
        copy_companions(origin, staging, dtype)
        manifest = {
            "version": MANIFEST_VERSION,
            "dtype": dtype,
            "recipe": dict(recipe() if callable(recipe) else recipe),
            "weights": weights,
            "bytes": {
                "arrays": sum(sizes.values()),
                "dense": structure.params_total * DTYPE_BYTES[dtype],
                "components": dict(sorted(sizes.items())),
            },
            "tensors": tensors,
            "files": files,
            "software": software(),
        }
        write_text(staging / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _write_section(
    path: Path, section: Section, tensors: dict[str, dict[str, str]], sizes: dict[str, int], weights: dict[str, int]
) -> None:
    """Write one section's arrays, and count them."""
    from safetensors.torch import save_file

    arrays: dict[str, torch.Tensor] = {}
    for name, stored in section.stored.items():
        tensors[name] = {"format": section.formats[name]}
        if stored.note:
            tensors[name]["note"] = stored.note
        arrays |= pack(name, stored)
        weights["stored"] += stored.shape[0] * stored.shape[1]
        weights["nonzero"] += int((stored.decode() != 0).sum())
        for component, size in stored.component_bytes().items():
            sizes[component] = sizes.get(component, 0) + size
    for name, tensor in section.plain.items():
        arrays[name] = tensor.detach().contiguous().cpu()
        sizes["plain"] = sizes.get("plain", 0) + tensor.numel() * tensor.element_size()
    save_file(arrays, path)
    give_usual_mode(path)


def write_plain(
    folder: Path, packed: PackedModel, progress: Callable[[str, int, int], None], smaller: Smaller | None = None
) -> None:
    """Write a packed model as plain safetensors, zeros in place, that any tool opens.

    Parameters
    ----------
    folder
        Where to; it must not exist yet, or be empty.
    packed
        The packed model.
    progress
        Called with a stage, steps done and steps in all.
    smaller
        What is left out (`sparsehpc.pruning.shrink.find_smaller`); None for every zero in its place.
    """
    structure = packed.structure
    with new_folder(folder) as staging:
        copy_companions(packed.folder, staging, packed.dtype)
        config = {**read_config(staging), **_config_changes(packed), **({} if smaller is None else smaller.config)}
        write_text(staging / "config.json", json.dumps(config, indent=1) + "\n")
        writer = ShardWriter(staging)
        before = {p.name for p in structure.parameters} | set(packed.added_biases)
        present = before if smaller is None else {smaller.new_name(name) for name in before}
        for parameter in structure_from_config(config).unique:
            if parameter.name not in present:  # a bias that came along with one that was added
                writer.add(parameter.name, _zeros(parameter.shape, packed.dtype))
        for done, section in enumerate(packed.sections()):
            progress("layers", done, structure.layers)
            tensors = decoded(section)
            for name, tensor in (tensors if smaller is None else smaller.cut(tensors)).items():
                writer.add(name, tensor)
        writer.close()
        kept: dict[str, Any] = {key: packed.manifest[key] for key in ("recipe", "weights", "software")}
        if smaller is not None:
            kept["smaller"] = {"config": dict(smaller.config), "stayed": list(smaller.stayed)}
        write_text(staging / RECIPE, json.dumps(kept, indent=1) + "\n")


def decoded(section: Section) -> dict[str, torch.Tensor]:
    """Every tensor of a section, zeros in place."""
    return {**section.plain, **{name: stored.decode() for name, stored in section.stored.items()}}


def _config_changes(packed: PackedModel) -> dict[str, bool]:
    """What the config must say so that transformers reads every tensor.

    Raises
    ------
    UserError
        The family has no place for a bias that the method added.
    """
    changes = {}
    if any(p.tied_to is not None and p.name in packed.formats for p in packed.structure.parameters):
        # A head that was pruned apart from its embedding is a tensor of its own now.
        changes["tie_word_embeddings"] = False
    left = set(packed.added_biases)
    config = read_config(packed.folder)
    for key in ("attention_bias", "mlp_bias"):
        more = {p.name for p in structure_from_config(config | changes | {key: True}).parameters}
        if left & more:
            left -= more
            changes[key] = True
    if left:
        raise UserError(
            f"{packed.folder}: a {packed.structure.model_type} model in transformers has no {sorted(left)[0]}, "
            f"which method {packed.manifest['recipe'].get('method')!r} added",
            "load the packed folder with sparsehpc.from_pretrained",
        )
    return changes


def _zeros(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    import torch

    return torch.zeros(shape, dtype=getattr(torch, dtype))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``folder`` where the block ends well, and is gone where it does not."""
    check_new_folder(folder)
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp makes a private folder; the one inside it is as the umask says.
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        made = staging / folder.name
        made.mkdir()
        yield made
        made.rename(folder)
        flush_folder(folder.parent)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """Raise `UserError` where something would be overwritten."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder} is already there and is not overwritten", "name another folder, or remove it first")


def copy_companions(origin: Path, folder: Path, dtype: str) -> None:
    """Copy config (with the dtype of the weights) and tokenizer."""
    config = {key: value for key, value in read_config(origin).items() if key != "torch_dtype"}
    write_text(folder / "config.json", json.dumps(config | {"dtype": dtype}, indent=1) + "\n")
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)

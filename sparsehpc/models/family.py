"""What a model family is: its parameters from a config, and how its checkpoints spell their names.

A family is one file in ``sparsehpc/models/families``. It registers a `Family` under the ``model_type`` of
config.json. Defaults are those of transformers, so that a short config means the same here and there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsehpc.core.errors import UserError, unknown
from sparsehpc.core.registry import Registry
from sparsehpc.models.structure import Parameter, Structure

FAMILIES: Registry[Family] = Registry("model family", "sparsehpc.models.families")


class ParameterList:
    """Parameters in module order, written the way a module tree is.

    Every method appends what one module owns; ``layer`` is the decoder layer or None.
    """

    def __init__(self) -> None:
        self.items: list[Parameter] = []

    def _add(
        self,
        module: str,
        leaf: str,
        shape: tuple[int, ...],
        group: str,
        kind: Any,
        layer: int | None,
        head_size: int = 0,
        post_norm: bool = False,
    ) -> None:
        self.items.append(
            Parameter(
                name=f"{module}.{leaf}",
                shape=shape,
                group=group,
                kind=kind,
                layer=layer,
                projection=module.rpartition(".")[2],
                head_size=head_size,
                post_norm=post_norm,
            )
        )

    def linear(
        self,
        module: str,
        group: str,
        outputs: int,
        inputs: int,
        *,
        bias: bool,
        layer: int | None = None,
        head_size: int = 0,
        post_norm: bool = False,
    ) -> None:
        """Append ``weight`` (outputs x inputs) and perhaps ``bias`` of a linear.

        Those of attention say how large a head is; the one that reads the heads comes after those that write them.
        ``post_norm`` is that of `Parameter`.
        """
        self._add(module, "weight", (outputs, inputs), group, "linear", layer, head_size, post_norm)
        if bias:
            self._add(module, "bias", (outputs,), group, "bias", layer)

    def norm(self, module: str, width: int, *, bias: bool, layer: int | None = None) -> None:
        """Append ``weight`` and perhaps ``bias`` of a normalisation."""
        self._add(module, "weight", (width,), "norm", "norm", layer)
        if bias:
            self._add(module, "bias", (width,), "norm", "norm", layer)

    def embedding(self, module: str, rows: int, width: int) -> None:
        """Append the table of an embedding (rows x width)."""
        self._add(module, "weight", (rows, width), "embedding", "embedding", None)

    def head(self, module: str, rows: int, width: int, *, tied_to: str | None) -> None:
        """Append the output head, which may share the storage of an embedding."""
        self.items.append(
            Parameter(
                name=f"{module}.weight",
                shape=(rows, width),
                group="lm_head",
                kind="linear",
                layer=None,
                projection=module.rpartition(".")[2],
                tied_to=tied_to,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of decoder.

    Parameters
    ----------
    model_type
        As in config.json.
    defaults
        Values that transformers assumes where the config is silent.
    build
        Config (defaults filled in) to `Structure`.
    initializer
        Config key of the standard deviation of untrained weights.
    prefix
        What a checkpoint saved from the bare decoder leaves out in front of its names.
    renames
        Pairs of regular expression and replacement: names in older checkpoints to those of transformers.
    gguf_architecture
        ``general.architecture`` of GGUF files of this family, or empty.
    gguf_permuted
        Whether GGUF stores the rows of the query and key projections in the interleaved rotary order.
    """

    model_type: str
    defaults: Mapping[str, Any]
    build: Callable[[Mapping[str, Any]], Structure]
    initializer: str = "initializer_range"
    prefix: str = "model."
    renames: tuple[tuple[str, str], ...] = field(default=())
    gguf_architecture: str = ""
    gguf_permuted: bool = False

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Config with the family's defaults where a key is absent."""
        return {**self.defaults, **config}


def family_of(config: Mapping[str, Any]) -> Family:
    """Family of a config.json; `UserError` with the legal ones otherwise."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        hint = "a family is one file in sparsehpc/models/families"
        if config.get("auto_map"):
            hint += "; Python code that comes with a model is never run"
        raise UserError(unknown("model family (model_type)", model_type, FAMILIES.names()), hint)
    if config.get("quantization_config"):
        raise UserError(
            f"this {model_type} checkpoint is quantised (quantization_config in its config.json)",
            "use the unquantised checkpoint, or a GGUF file",
        )
    return FAMILIES.get(model_type)


def structure_from_config(config: Mapping[str, Any]) -> Structure:
    """Every parameter of the model that a config.json describes, without torch.

    Parameters
    ----------
    config
        Content of config.json.

    Raises
    ------
    UserError
        The family is unknown, or a size is missing, not positive or does not fit another.
    """
    family = family_of(config)
    complete = family.complete(config)
    wrong = [
        f"{key} = {complete[key]!r}"
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
        if type(complete.get(key)) is not int or complete[key] < 1
    ]
    if wrong:
        raise UserError(f"config of a {family.model_type} model: not a positive whole number: {', '.join(wrong)}")
    if complete["hidden_size"] % complete["num_attention_heads"]:
        raise UserError(
            f"config of a {family.model_type} model: hidden_size {complete['hidden_size']} is not a multiple of "
            f"num_attention_heads {complete['num_attention_heads']}"
        )
    return family.build(complete)

"""A model's stored tensors by role, known from its config alone (no torch, no weights)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from sparsehpc.core.errors import UserError, unknown

Kind = Literal["linear", "bias", "embedding", "norm", "other"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One named parameter.

    Parameters
    ----------
    name
        Name in the checkpoint as transformers loads it, for example ``model.layers.0.mlp.up_proj.weight``.
    shape
        Rows x columns of a linear weight: out_features x in_features.
    group
        ``attention``, ``mlp``, ``embedding``, ``norm``, ``lm_head`` or ``other``.
    kind
        ``linear`` is a weight that a matrix product uses; ``bias`` belongs to one.
    layer
        Decoder layer, or None outside them.
    projection
        Last part of the module's name (``q_proj``, ``fc1``, ...), the heat map's second axis.
    tied_to
        Name of the parameter whose storage this one shares; it occupies no bytes of its own.
    head_size
        Features of one attention head, for the linears of attention; 0 elsewhere.
    post_norm
        Whether its decoder layer normalises after the residual connection, so that even an empty layer changes what
        passes through it.
    """

    name: str
    shape: tuple[int, ...]
    group: str
    kind: Kind
    layer: int | None
    projection: str
    tied_to: str | None = None
    head_size: int = 0
    post_norm: bool = False

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        """Name of the module that owns the parameter."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Structure:
    """All parameters of a model, in the order its modules are defined.

    Parameters
    ----------
    model_type
        ``opt``, ``gpt_neox``, ``llama``, ... as in config.json.
    parameters
        Every parameter once by name; a tied one is listed with ``tied_to``.
    layers_path
        Module path of the list of decoder layers, for example ``model.layers``.
    layers
        Number of decoder layers.
    hidden
        Width of the hidden states.
    vocab_size
        Rows of the output head.
    max_positions
        Longest window the model accepts.
    attention_flops_per_context_token
        Multiply-adds times two of the attention scores and their product with the values, per token and
        per token of context, over all layers (4 x query width x layers).
    """

    model_type: str
    parameters: tuple[Parameter, ...]
    layers_path: str
    layers: int
    hidden: int
    vocab_size: int
    max_positions: int
    attention_flops_per_context_token: int

    @property
    def unique(self) -> tuple[Parameter, ...]:
        """Parameters that have storage of their own."""
        return tuple(p for p in self.parameters if p.tied_to is None)

    @property
    def params_total(self) -> int:
        """Number of weights, each stored tensor once."""
        return sum(p.numel for p in self.unique)

    def prunable(self, targets: tuple[str, ...]) -> tuple[Parameter, ...]:
        """Linear weights of the target groups, in module order: what ``sparsity`` is a fraction of."""
        known = {p.group for p in self.parameters if p.kind in ("linear", "embedding")}
        for target in targets:
            if target not in known:
                raise UserError(unknown("target", target, known))
        return tuple(p for p in self.parameters if p.group in targets and p.kind in ("linear", "embedding"))

    def in_layer(self, layer: int) -> tuple[Parameter, ...]:
        """Parameters of one decoder layer."""
        return tuple(p for p in self.parameters if p.layer == layer)

    @property
    def outside_layers(self) -> tuple[Parameter, ...]:
        """Parameters of embedding, final norm and head."""
        return tuple(p for p in self.parameters if p.layer is None)


def bias_name(weight: str) -> str:
    """Name of the bias that belongs to a weight."""
    return weight.removesuffix("weight") + "bias"


def bias_parameter(weight: Parameter) -> Parameter:
    """Bias of a linear, as the structure would list it."""
    return replace(weight, name=bias_name(weight.name), shape=weight.shape[:1], kind="bias", tied_to=None)

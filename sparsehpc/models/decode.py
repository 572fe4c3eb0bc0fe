"""Decode one sequence with as little between the products as possible: the Llama family, batch 1, greedy.

Transformers spends more time per token around the matrix products of a small model than in them. Here keys and values
lie in one preallocated array per layer. In float32, where every matrix has a compiled kernel, a token is one compiled
call; otherwise, and for the prompt, the products are called one by one without a dispatcher, and nothing else is done
than what the architecture asks for. Logits equal the assembled model's but for the order of sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers.activations import ACT2FN

from sparsehpc.core.errors import UserError
from sparsehpc.formats import kernels

if TYPE_CHECKING:
    from sparsehpc.formats.base import Stored
    from sparsehpc.formats.kernels.ops import Product
    from sparsehpc.formats.kernels.token import TokenStep
    from sparsehpc.models.assemble import Assembled

#: Multiplies tokens x columns.
Multiply = Callable[[torch.Tensor], torch.Tensor]
#: A stored matrix and its bias.
Linear = tuple["Stored", "torch.Tensor | None"]

#: Families whose decoder layer is the one written out here.
FAMILIES = ("llama", "mistral", "qwen2")
#: Largest difference of the logits of one model run in two ways, relative to the largest logit: the same weights, with
#: sums in another order through every layer.
LOGITS_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}


class _Layer(NamedTuple):
    """Linears and norms of one decoder layer; keys and values are key_value_heads x positions x head_dim.

    Linears that read the same input are one matrix where they are stored alike.
    """

    query_key_value: list[Linear]
    output: list[Linear]
    gate_up: list[Linear]
    down: list[Linear]
    input_norm: torch.Tensor
    post_norm: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def unsupported(model: Any) -> str | None:
    """Why a model cannot be decoded here, or None where it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"the lean decoder serves {', '.join(FAMILIES)}, not {config.model_type}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the lean decoder has no sliding window"
    if (device := model.model.embed_tokens.weight.device.type) != "cpu":
        return f"the lean decoder runs on the CPU, and the model is on {device}"
    return None


class Decoder:
    """A sequence that grows token by token.

    Parameters
    ----------
    model
        A model of `sparsehpc.models.assemble.assemble` on the CPU; what is changed in it later is not followed.
    max_tokens
        Longest sequence, prompt included.

    Attributes
    ----------
    compiled
        Whether a token is one compiled call.

    Raises
    ------
    UserError
        The family is not served, the model reads fewer tokens, or it turns them differently in a longer sequence.
    """

    def __init__(self, model: Any, max_tokens: int) -> None:
        if (reason := unsupported(model)) is not None:
            raise UserError(reason, "model.generate serves every family")
        assembled: Assembled = model.sparsehpc
        if max_tokens < 1:
            raise UserError(f"a sequence has room for at least one token, not {max_tokens}")
        if max_tokens > assembled.structure.max_positions:
            raise UserError(
                f"{max_tokens} tokens are more than the {assembled.structure.max_positions} the model reads"
            )
        config = model.config
        self.max_tokens, self.position = max_tokens, 0
        self.heads, self.key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.wide: int = config.intermediate_size
        self._eps: float = config.rms_norm_eps
        self._activation_name: str = config.hidden_act
        self._activation: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[self._activation_name]
        body = model.model
        self._embedding: torch.Tensor = body.embed_tokens.weight.data.contiguous()
        # A tied head is multiplied at this address.
        self._address = self._embedding.data_ptr()
        self._norm: torch.Tensor = self._own(body.norm.weight.data)
        self._head: Stored = assembled.linear("lm_head.weight")[0]
        self._logits = _multiply([(self._head, None)])
        with torch.inference_mode():
            positions = torch.arange(max_tokens)[None]
            cosines, sines = body.rotary_emb(self._embedding[:1, None], positions)
            # Some rotary embeddings depend on the length of the sequence: one table cannot serve every length.
            if not torch.equal(body.rotary_emb(self._embedding[:1, None], positions[:, :2])[0], cosines[:, :2]):
                raise UserError(
                    f"the model's rotary embedding changes on the way to {max_tokens} tokens "
                    "(longrope: beyond original_max_position_embeddings)",
                    "ask for fewer tokens; model.generate serves every length",
                )
        half = self.head_dim // 2
        self._cosines: torch.Tensor = cosines[0].to(self._embedding.dtype).contiguous()
        # rotate_half(x) * sin is roll(x) * sin with the first half negated.
        self._sines: torch.Tensor = torch.cat([-sines[0][:, :half], sines[0][:, half:]], dim=1).to(self._cosines.dtype)
        self._layers = [self._layer(assembled, body.layers[n], n) for n in range(assembled.structure.layers)]
        self._products = [[_multiply(linears) for linears in layer[:4]] for layer in self._layers]
        self._step = self._compiled_step()
        self.compiled: bool = self._step is not None

    def _layer(self, assembled: Assembled, module: Any, number: int) -> _Layer:
        here = f"model.layers.{number}"
        room = (self.key_value_heads, self.max_tokens, self.head_dim)
        return _Layer(
            self._linears(assembled, [f"{here}.self_attn.{name}_proj.weight" for name in ("q", "k", "v")]),
            self._linears(assembled, [f"{here}.self_attn.o_proj.weight"]),
            self._linears(assembled, [f"{here}.mlp.{name}_proj.weight" for name in ("gate", "up")]),
            self._linears(assembled, [f"{here}.mlp.down_proj.weight"]),
            self._own(module.input_layernorm.weight.data),
            self._own(module.post_attention_layernorm.weight.data),
            self._embedding.new_zeros(room),
            self._embedding.new_zeros(room),
        )

    def _linears(self, assembled: Assembled, names: Sequence[str]) -> list[Linear]:
        """The stored matrices of linears that read the same input: one where they are stored alike."""
        shared = assembled.product(names[0])
        if shared is not None and shared.names == tuple(names):
            found = [(shared.stored, shared.bias)]
        else:
            found = [assembled.linear(name) for name in names]
        return [(stored, None if bias is None else self._own(bias.data)) for stored, bias in found]

    def _own(self, vector: torch.Tensor) -> torch.Tensor:
        """A copy in the activations' dtype: modules may replace, share or convert their parameters."""
        return vector.to(self._embedding.dtype, copy=True).contiguous()

    def _compiled_step(self) -> TokenStep | None:
        """One call for a whole token, or None where something in the model has no kernel."""
        if self._embedding.dtype != torch.float32 or self._activation_name != "silu":
            return None
        from sparsehpc.formats.kernels.token import Part, TokenLayer, TokenStep

        linears = [pair for layer in self._layers for group in layer[:4] for pair in group]
        kernel = {id(stored): _kernel(stored) for stored, _ in [*linears, (self._head, None)]}
        # Packed matrices keep the instruction set of when they were made.
        if None in kernel.values() or len({product.matrix[0] for product in kernel.values() if product}) > 1:
            return None

        def parts(group: list[Linear]) -> list[Part]:
            return [Part(cast("Product", kernel[id(stored)]), bias) for stored, bias in group]

        return TokenStep(
            [
                TokenLayer(
                    query_key_value=parts(layer.query_key_value),
                    output=parts(layer.output),
                    gate_up=parts(layer.gate_up),
                    down=parts(layer.down),
                    input_norm=layer.input_norm,
                    post_norm=layer.post_norm,
                    keys=layer.keys,
                    values=layer.values,
                )
                for layer in self._layers
            ],
            heads=self.heads,
            key_value_heads=self.key_value_heads,
            head_dim=self.head_dim,
            wide=self.wide,
            eps=self._eps,
            norm=self._norm,
            head=parts([(self._head, None)])[0],
            cosines=self._cosines,
            sines=self._sines,
        )

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> torch.Tensor:
        """Read more tokens; returns the logits after the last of them (vocabulary).

        A sequence begins with its whole prompt; after that tokens come one by one.
        """
        count, start = len(ids), self.position
        if not count or (start and count > 1):
            raise ValueError("a prompt begins the sequence; after it one token at a time")
        if start + count > self.max_tokens:
            raise ValueError(f"the sequence has room for {self.max_tokens} tokens")
        if self._embedding.data_ptr() != self._address:
            raise RuntimeError("the model's embedding lies elsewhere now (share_memory?): make the decoder again")
        end = start + count
        if start and self._step is not None:
            logits = self._step(self._embedding[ids[0]], start)
            self.position = end
            return logits
        x = self._embedding[torch.tensor(ids)]
        cosines, sines = self._cosines[start:end, None], self._sines[start:end, None]
        rotated = self.heads + self.key_value_heads
        width, half = (x.shape[1],), self.head_dim // 2
        for layer, (query_key_value, output, gate_up, down) in zip(self._layers, self._products, strict=True):
            mixed = query_key_value(rms_norm(x, width, layer.input_norm, self._eps))
            mixed = mixed.view(count, rotated + self.key_value_heads, self.head_dim)
            turned = mixed[:, :rotated]
            turned = torch.addcmul(turned * cosines, turned.roll(half, 2), sines)
            layer.keys[:, start:end] = turned[:, self.heads :].transpose(0, 1)
            layer.values[:, start:end] = mixed[:, rotated:].transpose(0, 1)
            seen = scaled_dot_product_attention(
                turned[:, : self.heads].transpose(0, 1)[None],
                layer.keys[None, :, :end],
                layer.values[None, :, :end],
                is_causal=count > 1,
                enable_gqa=self.heads != self.key_value_heads,
            )
            x = x + output(seen[0].transpose(0, 1).reshape(count, -1))
            wide = gate_up(rms_norm(x, width, layer.post_norm, self._eps))
            x = x + down(self._activation(wide[:, : self.wide]) * wide[:, self.wide :])
        self.position = end
        return self._logits(rms_norm(x[-1:], width, self._norm, self._eps))[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        """Another sequence that goes on from here, with keys and values of its own; the weights are shared."""
        made = copy.copy(self)
        made._layers = [layer._replace(keys=layer.keys.clone(), values=layer.values.clone()) for layer in self._layers]
        made._step = made._compiled_step()
        made.compiled = made._step is not None
        return made

    def reset(self) -> None:
        """Begin another sequence in the same room."""
        self.position = 0

    def generate(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """Continue a prompt greedily (ties: lowest id); returns the new tokens."""
        self.reset()
        made = [int(self.feed(prompt).argmax())]
        while len(made) < new_tokens:
            made.append(int(self.feed(made[-1:]).argmax()))
        return made


def _multiply(linears: Sequence[Linear]) -> Multiply:
    """Products of linears that read the same input, beside each other."""
    parts = [product(stored, bias) for stored, bias in linears]
    return parts[0] if len(parts) == 1 else lambda x: torch.cat([part(x) for part in parts], dim=-1)


def product(stored: Stored, bias: torch.Tensor | None) -> Multiply:
    """Product of a stored matrix without the dispatcher where a compiled kernel serves it."""
    from sparsehpc.formats.packed import Packed

    kernel = _kernel(stored)
    if kernel is None:
        return lambda x: stored.linear(x, bias)
    if isinstance(stored, Packed):
        return kernel if bias is None else lambda x: kernel(x).add_(bias)
    from sparsehpc.formats.kernels.ops import SMALL_TOKENS

    # Many tokens at once are the library's strength, one token is the kernel's.
    weight = stored.components()["values"]

    def dense(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > SMALL_TOKENS:
            return linear(x, weight, bias)
        return kernel(x) if bias is None else kernel(x).add_(bias)

    return dense


def _kernel(stored: Stored) -> Product | None:
    """The compiled product of a stored matrix, or None where there is none."""
    if kernels.isa() is None:
        return None
    from sparsehpc.formats.kernels import ops
    from sparsehpc.formats.packed import Packed

    if isinstance(stored, Packed):
        return stored.product()
    arrays = stored.components()
    if set(arrays) != {"values"} or stored.dtype not in ops.X_TYPES or not 0 < stored.shape[1] <= ops.MAX_COLUMNS:
        return None
    weight = arrays["values"]
    return ops.Product(ops.dense(weight, weight), weight.shape[1])

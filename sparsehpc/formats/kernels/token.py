"""One token through all layers of a Llama-like decoder in one compiled call: float32, batch 1.

Between Python and a product lie microseconds, and a token of a small model has 171 products: called one by one they
and the operations between them take longer than the sparsity saves. ``decode.c`` says what happens inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from sparsehpc.formats import kernels

if TYPE_CHECKING:
    from sparsehpc.formats.kernels.ops import Product

#: Numbers of a matrix and its bias, all zero where there is none.
_NOTHING = (0,) * 14


class Part(NamedTuple):
    """A product, and the bias (rows, float32) or None."""

    product: Product
    bias: torch.Tensor | None


class TokenLayer(NamedTuple):
    """One decoder layer.

    Parameters
    ----------
    query_key_value
        One product of all three, or three.
    output, down
        One product.
    gate_up
        One product of both, or two.
    input_norm, post_norm
        Weights of the norms (hidden).
    keys, values
        key_value_heads x max_tokens x head_dim, contiguous; written in place.
    """

    query_key_value: Sequence[Part]
    output: Sequence[Part]
    gate_up: Sequence[Part]
    down: Sequence[Part]
    input_norm: torch.Tensor
    post_norm: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class TokenStep:
    """The compiled step of one sequence; all tensors are float32 on the CPU, and kept.

    Parameters
    ----------
    layers
        The decoder layers.
    heads, key_value_heads, head_dim, wide
        Sizes; ``wide`` is that of the MLP.
    eps
        Of the norms.
    norm, head
        The last norm and the output head.
    cosines, sines
        Rotary tables, max_tokens x head_dim; the sines of the first half negated.

    Raises
    ------
    ValueError
        Arrays do not fit each other, or products are of two instruction sets.
    RuntimeError
        The compiled kernels are not available.
    """

    def __init__(
        self,
        layers: Sequence[TokenLayer],
        *,
        heads: int,
        key_value_heads: int,
        head_dim: int,
        wide: int,
        eps: float,
        norm: torch.Tensor,
        head: Part,
        cosines: torch.Tensor,
        sines: torch.Tensor,
    ) -> None:
        module = kernels.extension()
        if module is None:
            raise RuntimeError("the compiled kernels are not available; see `sparsehpc doctor`")
        max_tokens, hidden, attended = cosines.shape[0], norm.shape[0], heads * head_dim
        read = attended + 2 * key_value_heads * head_dim
        _check([head], head.product.rows, hidden)
        _check_floats((norm, (hidden,)), (cosines, (max_tokens, head_dim)), (sines, (max_tokens, head_dim)))
        for layer in layers:
            _check(layer.query_key_value, read, hidden)
            _check(layer.output, hidden, attended)
            _check(layer.gate_up, 2 * wide, hidden)
            _check(layer.down, hidden, wide)
            room = (key_value_heads, max_tokens, head_dim)
            _check_floats((layer.input_norm, (hidden,)), (layer.post_norm, (hidden,)))
            _check_floats((layer.keys, room), (layer.values, room))
        self._kept = (layers, norm, head, cosines, sines)
        self._vocabulary = head.product.rows
        numbers = [len(layers), hidden, heads, key_value_heads, head_dim, wide, max_tokens]
        numbers += [norm.data_ptr(), cosines.data_ptr(), sines.data_ptr(), *_numbers(head)]
        for layer in layers:
            groups = ((layer.query_key_value, 3), (layer.output, 1), (layer.gate_up, 2), (layer.down, 1))
            for parts, places in groups:
                for part in parts:
                    numbers += _numbers(part)
                numbers += _NOTHING * (places - len(parts))
            numbers += [a.data_ptr() for a in (layer.input_norm, layer.post_norm, layer.keys, layer.values)]
        table = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        self._module = module
        self._decoder = module.decoder(table.data_ptr(), eps)

    def __call__(self, embedded: torch.Tensor, position: int) -> torch.Tensor:
        """Logits (vocabulary) after the token whose embedding (hidden, contiguous) is given."""
        # Not torch's default dtype and device, which belong to the user: the kernel writes float32.
        logits = torch.empty(self._vocabulary, dtype=torch.float32, device="cpu")
        self._module.decode(self._decoder, embedded.data_ptr(), position, logits.data_ptr(), torch.get_num_threads())
        return logits


def _numbers(part: Part) -> tuple[int, ...]:
    return (*part.product.matrix, 0 if part.bias is None else part.bias.data_ptr())


def _check(parts: Sequence[Part], rows: int, columns: int) -> None:
    """Only here are the matrices seen beside each other; the kernel writes where the sizes say."""
    found = sum(part.product.rows for part in parts), {part.product.matrix[4] for part in parts}
    if found != (rows, {columns}):
        raise ValueError(f"products of {found[0]} rows x {found[1]} columns where {rows} x {columns} are expected")
    for part in parts:
        if part.bias is not None:
            _check_floats((part.bias, (part.product.rows,)))


def _check_floats(*arrays: tuple[torch.Tensor, tuple[int, ...]]) -> None:
    for array, shape in arrays:
        fits = tuple(array.shape) == shape and array.is_contiguous()
        if not fits or array.dtype != torch.float32 or array.device.type != "cpu":
            raise ValueError(f"an array is {array.dtype} {tuple(array.shape)} instead of contiguous float32 {shape}")

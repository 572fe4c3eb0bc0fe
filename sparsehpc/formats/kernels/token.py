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
        max_tokens = cosines.shape[0]
        self._kept = (layers, norm, head, cosines, sines)
        self._vocabulary = head.product.rows
        numbers = [len(layers), norm.shape[0], heads, key_value_heads, head_dim, wide, max_tokens]
        numbers += [norm.data_ptr(), cosines.data_ptr(), sines.data_ptr(), *_numbers(head)]
        for layer in layers:
            groups = ((layer.query_key_value, 3), (layer.output, 1), (layer.gate_up, 2), (layer.down, 1))
            for parts, room in groups:
                for part in parts:
                    numbers += _numbers(part)
                numbers += _NOTHING * (room - len(parts))
            numbers += [a.data_ptr() for a in (layer.input_norm, layer.post_norm, layer.keys, layer.values)]
        table = torch.tensor(numbers, dtype=torch.int64)
        self._module = module
        self._decoder = module.decoder(table.data_ptr(), eps)

    def __call__(self, embedded: torch.Tensor, position: int) -> torch.Tensor:
        """Logits (vocabulary) after the token whose embedding (hidden, contiguous) is given."""
        logits = torch.empty(self._vocabulary)
        self._module.decode(self._decoder, embedded.data_ptr(), position, logits.data_ptr(), torch.get_num_threads())
        return logits


def _numbers(part: Part) -> tuple[int, ...]:
    return (*part.product.matrix, 0 if part.bias is None else part.bias.data_ptr())

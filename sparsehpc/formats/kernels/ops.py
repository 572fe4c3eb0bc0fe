"""The compiled kernels as torch operators, so that torch.compile and the profiler see them.

Every operator ``sparsehpc::NAME`` takes activations (tokens x columns, float32, bfloat16 or float16) and the arrays of
a stored matrix, and gives tokens x rows in the activations' dtype. The arrays must be consistent: formats check
them when they are made, the kernels do not. `sparsehpc.formats.kernels.reference` restates each in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from sparsehpc.formats import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

#: Codes of kernels.h.
DENSE, BITMAP, KEEP, ONE_OF_FOUR, INDEX16 = range(5)
FLOAT32, BFLOAT16, FLOAT16, INT8, NIBBLES = range(5)
AUTO, SMALL, LANES, TILE = range(4)
X_TYPES: Final = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
#: Most tokens of the strategy SMALL.
SMALL_TOKENS: Final = 8
MAX_COLUMNS: Final = 1 << 16


class Arrays(NamedTuple):
    """A stored matrix as the kernels take it; see ``sh_matrix`` in kernels.h."""

    layout: int
    type: int
    rows: int
    values: torch.Tensor
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    indices: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    per_row: int = 0


class Product:
    """The product of one stored matrix, ready to be called: what does not change is looked up once.

    Between Python and the kernel lie two microseconds so, and twelve through torch's dispatcher: as long as a small
    layer's whole product takes.

    Parameters
    ----------
    arrays
        The matrix; kept, and not to be changed in place.
    columns
        Width of the activations.
    isa
        Instruction set; None for the one in use.

    Attributes
    ----------
    matrix
        The matrix as the extension takes it: instruction set, layout, type, sizes, addresses.
    rows
        Width of what comes out.
    """

    def __init__(self, arrays: Arrays, columns: int, isa: str | None = None) -> None:
        module = kernels.extension()
        name = isa or kernels.isa()
        if module is None or name is None:
            raise RuntimeError("the compiled kernels are not available; see `sparsehpc doctor`")
        self._arrays, self._columns, self._module = arrays, columns, module
        self.matrix: tuple[int, ...] = (kernels.available().index(name), *_matrix(arrays, columns))
        self.rows = arrays.rows

    def __reduce__(self) -> tuple[type[Product], tuple[Arrays, int]]:
        """A copy has the addresses of its own arrays."""
        return Product, (self._arrays, self._columns)

    def __call__(self, x: torch.Tensor, strategy: int = AUTO) -> torch.Tensor:
        """Multiply.

        Parameters
        ----------
        x
            Tokens x columns, float32, bfloat16 or float16.
        strategy
            ``AUTO``, ``SMALL``, ``LANES`` or ``TILE``; tests force one.
        """
        x = x.contiguous()
        tokens = x.shape[0]
        y = x.new_empty(tokens, self.rows)
        self._module.linear(
            *self.matrix, x.data_ptr(), X_TYPES[x.dtype], tokens, y.data_ptr(), torch.get_num_threads(), strategy
        )
        return y


def multiply(x: torch.Tensor, arrays: Arrays, isa: str | None = None, strategy: int = AUTO) -> torch.Tensor:
    """Multiply once; see `Product`."""
    return Product(arrays, x.shape[1], isa)(x, strategy)


def _matrix(arrays: Arrays, columns: int) -> tuple[int, ...]:
    return (
        arrays.layout,
        arrays.type,
        arrays.rows,
        columns,
        arrays.values.data_ptr(),
        _address(arrays.mask),
        _address(arrays.positions),
        _address(arrays.indices),
        _address(arrays.offsets),
        _address(arrays.scales),
        arrays.per_row,
        arrays.values.numel(),
    )


def _address(array: torch.Tensor | None) -> int:
    return 0 if array is None else array.data_ptr()


def dense(x: torch.Tensor, values: torch.Tensor) -> Arrays:
    """Plain values: rows x columns."""
    return Arrays(DENSE, X_TYPES[values.dtype], values.shape[0], values, per_row=values.shape[1])


def dense_int8(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> Arrays:
    """Codes (rows x columns, int8) and a float32 scale per row."""
    return Arrays(DENSE, INT8, codes.shape[0], codes, scales=scales, per_row=codes.shape[1])


def dense_q4(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> Arrays:
    """Two codes a byte, whole blocks of 32 columns; scale and minimum of each in float16."""
    return Arrays(DENSE, NIBBLES, codes.shape[0], codes, scales=scales, per_row=codes.shape[1])


def bitmap(x: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, offsets: torch.Tensor) -> Arrays:
    """Packed values, mask words, row offsets."""
    return Arrays(BITMAP, X_TYPES[values.dtype], mask.shape[0], values, mask=mask, offsets=offsets)


def keep(x: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> Arrays:
    """Values (rows x kept per row) and mask words."""
    return Arrays(KEEP, X_TYPES[values.dtype], mask.shape[0], values, mask=mask, per_row=values.shape[1])


def one_of_four(x: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> Arrays:
    """Values (rows x columns / 4) and 2-bit positions."""
    return Arrays(
        ONE_OF_FOUR, X_TYPES[values.dtype], values.shape[0], values, positions=positions, per_row=values.shape[1]
    )


def csr16(x: torch.Tensor, values: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor) -> Arrays:
    """Values, 16-bit columns, row offsets."""
    return Arrays(INDEX16, X_TYPES[values.dtype], offsets.shape[0] - 1, values, indices=indices, offsets=offsets)


def bitmap_int8(
    x: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor
) -> Arrays:
    """Packed codes, mask words, a float32 scale per row, row offsets."""
    return Arrays(BITMAP, INT8, mask.shape[0], codes, mask=mask, offsets=offsets, scales=scales)


def bitmap_q4(
    x: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor
) -> Arrays:
    """Packed codes (offsets count bytes), mask words, scale and minimum per 32 columns."""
    return Arrays(BITMAP, NIBBLES, mask.shape[0], codes, mask=mask, offsets=offsets, scales=scales)


#: Operators by name: from the operator's arguments to the matrix.
ARRAYS: Final[dict[str, Callable[..., Arrays]]] = {
    build.__name__: build
    for build in (dense, dense_int8, dense_q4, bitmap, keep, one_of_four, csr16, bitmap_int8, bitmap_q4)
}

_library = torch.library.Library("sparsehpc", "DEF")  # type: ignore[no-untyped-call]


def _register(name: str, build: Callable[..., Arrays]) -> None:
    arguments = [word for word in build.__annotations__ if word != "return"]
    schema = f"{name}({', '.join(f'Tensor {word}' for word in arguments)}) -> Tensor"
    _library.define(schema)  # type: ignore[no-untyped-call]

    def run(x: torch.Tensor, *arrays: torch.Tensor) -> torch.Tensor:
        return multiply(x, build(x, *arrays))

    def fake(x: torch.Tensor, *arrays: torch.Tensor) -> torch.Tensor:
        return x.new_empty(x.shape[0], build(x, *arrays).rows)

    _library.impl(name, run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"sparsehpc::{name}", fake, lib=_library)


for _name, _build in ARRAYS.items():
    _register(_name, _build)

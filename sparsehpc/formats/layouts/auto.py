"""Per matrix the format that is fastest, or smallest, dense included; the choice and its reason are in the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sparsehpc.core.spec import DTYPE_BYTES
from sparsehpc.formats.base import FORMATS, Format, Stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

#: Order decides between formats of one cost and one size.
_CANDIDATES = ("dense", "bitmap", "nm", "csr16")
_BLOCKS = "bsr"


class _Work(NamedTuple):
    """Time that the processor needs however few bytes there are, as the bytes it could have read meanwhile."""

    per_weight: float
    per_nonzero: float


#: From stacks of matrices larger than any cache on AMD Zen 4, one thread with 21 GB/s of memory bandwidth: a mask word
#: of 64 columns takes 4.5 ns in float32 and 3.1 ns in bfloat16 where it is expanded, 3.4 and 2.4 ns where few weights
#: are kept, a 16-bit index 0.39 and 0.45 ns; slower in minutes when memory is, in about the same relation. With other
#: bandwidths bytes weigh otherwise, but where bitmap and csr16 cross is decided by work alone.
_WORK = {
    "mask": {4: _Work(1.5, 0.0), 2: _Work(1.0, 0.0)},
    "mask, few kept": {4: _Work(1.1, 0.0), 2: _Work(0.8, 0.0)},
    "indices": {4: _Work(0.0, 8.2), 2: _Work(0.0, 9.4)},
}
#: Of 64 weights; what the kernels take for few.
_FEW = 26


def _work(name: str, weights: int, nonzeros: int, size: int) -> float:
    """Time of the work alone, in bytes that could have been read meanwhile."""
    if name == "csr16":
        kind = "indices"
    elif name in ("bitmap", "nm"):
        kind = "mask, few kept" if nonzeros * 64 <= weights * _FEW else "mask"
    else:
        return 0.0
    work = _WORK[kind].get(size, _Work(0.0, 0.0))
    return work.per_weight * weights + work.per_nonzero * nonzeros


class _Choice(Format):
    """Chooses by a rule that needs no measurement here: the same weights are stored alike on every machine."""

    goal: ClassVar[str]
    devices = ("cpu",)  # its candidates are

    @classmethod
    def cost(cls, name: str, rows: int, columns: int, nonzeros: int, size: int, nbytes: int) -> float:
        """What is to be smallest."""
        raise NotImplementedError

    @classmethod
    def encode(cls, weight: torch.Tensor, pattern: str = "unstructured") -> Stored:
        """Store in the format that the rule names; `Stored.note` says which and why."""
        rows, columns = weight.shape
        dtype = str(weight.dtype).removeprefix("torch.")
        nonzeros = int((weight != 0).sum())
        dense_bytes = rows * columns * DTYPE_BYTES[dtype]
        sizes: dict[str, int] = {}
        ready: dict[str, Stored] = {}
        for name in (*_CANDIDATES, _BLOCKS):
            form = FORMATS.get(name)
            if form.unsupported(rows, columns, dtype, pattern) is not None:
                continue
            nbytes = form.predicted_bytes(rows, columns, nonzeros, dtype)
            if nbytes is None:
                ready[name] = form.encode(weight, pattern)
                nbytes = ready[name].nbytes
            sizes[name] = nbytes
        costs = {
            name: cls.cost(name, rows, columns, nonzeros, DTYPE_BYTES[dtype], nbytes) for name, nbytes in sizes.items()
        }
        name = min(costs, key=lambda candidate: (costs[candidate], sizes[candidate]))
        stored = ready.get(name) or FORMATS.get(name).encode(weight, pattern)
        share = sizes[name] / dense_bytes if dense_bytes else 1.0
        stored.note = f"{name}: {cls.goal} by rule, {share:.3f} of the dense bytes"
        return stored

    @classmethod
    def chosen(cls, stored: Stored) -> str:
        """Name of the format it chose."""
        return _name_of(stored.components())

    @classmethod
    def from_components(
        cls, components: Mapping[str, torch.Tensor], shape: tuple[int, int], dtype: torch.dtype
    ) -> Stored:
        """Rebuild whichever format these arrays belong to."""
        return FORMATS.get(_name_of(components)).from_components(components, shape, dtype)


def _name_of(components: Mapping[str, torch.Tensor]) -> str:
    """Format that has these arrays."""
    import torch

    names = frozenset(components)
    if names == {"values", "indices", "offsets"}:
        return "csr16" if components["indices"].dtype == torch.uint16 else _BLOCKS
    by_names = {
        frozenset(["values"]): "dense",
        frozenset(["values", "mask", "offsets"]): "bitmap",
        frozenset(["values", "mask"]): "nm",
        frozenset(["values", "positions"]): "nm",
    }
    if names not in by_names:
        raise ValueError(f"no format that is chosen automatically has the arrays {sorted(names)}")
    return by_names[names]


@FORMATS.register("auto")
class Auto(_Choice):
    """The fastest for one token at a time.

    Rule: time is the bytes read or the work done, whichever is longer. Dense wins below 3 % sparsity in float32 and 6 %
    in narrower types, then bitmap (or keep N of M, which needs no offsets), and csr16 from about 86 % on in float32 and
    91 % in narrower types.
    """

    name = "auto"
    summary = "per matrix the fastest of dense, bitmap, nm and csr16 for one token, by a rule on bytes and work"
    goal = "fastest"

    @classmethod
    def cost(cls, name: str, rows: int, columns: int, nonzeros: int, size: int, nbytes: int) -> float:
        """Bytes read, or work in bytes that could have been read meanwhile."""
        if name == _BLOCKS:
            return float("inf")  # torch's block product takes longer than the dense one on a processor
        return max(float(nbytes), _work(name, rows * columns, nonzeros, size))


@FORMATS.register("auto-size")
class AutoSize(_Choice):
    """The smallest."""

    name = "auto-size"
    summary = "per matrix the smallest of dense, bitmap, nm, csr16 and bsr"
    goal = "smallest"

    @classmethod
    def cost(cls, name: str, rows: int, columns: int, nonzeros: int, size: int, nbytes: int) -> float:
        """Bytes."""
        return float(nbytes)

"""Hidden states of one stream: in memory, or in a file once they would exceed the budget."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch


class HiddenStates:
    """One hidden-state tensor (1 x tokens x width) per window.

    Parameters
    ----------
    lengths
        Tokens of every window.
    width
        Size of a hidden state.
    dtype, device
        Of the tensors.
    file
        Where the states are kept when not in memory. It is read and written with plain calls: pages of a mapped
        file would count as resident memory.
    """

    def __init__(
        self, lengths: list[int], width: int, dtype: torch.dtype, device: str, file: Path | None = None
    ) -> None:
        self._lengths = lengths
        self._width = width
        self._dtype = dtype
        self._device = device
        self._memory: list[torch.Tensor | None] = [None] * len(lengths)
        self._starts = list(itertools.accumulate((n * width * dtype.itemsize for n in lengths), initial=0))
        self._file = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("w+b")
            file.unlink()  # the space is freed when the process ends, however it ends

    @staticmethod
    def nbytes(lengths: list[int], width: int, dtype: torch.dtype) -> int:
        """Bytes of all states of one stream."""
        return sum(lengths) * width * dtype.itemsize

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, window: int) -> torch.Tensor:
        if self._file is None:
            held = self._memory[window]
            if held is None:
                raise IndexError(f"window {window} has no hidden state yet")
            return held
        self._file.seek(self._starts[window])
        buffer = bytearray(self._file.read(self._starts[window + 1] - self._starts[window]))
        # Into torch's own memory: products can depend on how their operands are aligned.
        flat = torch.empty(len(buffer) // self._dtype.itemsize, dtype=self._dtype)
        flat.copy_(torch.frombuffer(buffer, dtype=self._dtype))
        return flat.view(1, self._lengths[window], self._width).to(self._device)

    def __setitem__(self, window: int, hidden: torch.Tensor) -> None:
        if self._file is None:
            self._memory[window] = hidden
            return
        self._file.seek(self._starts[window])
        self._file.write(hidden.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())

    def close(self) -> None:
        """Free the states."""
        self._memory = []
        if self._file is not None:
            self._file.close()

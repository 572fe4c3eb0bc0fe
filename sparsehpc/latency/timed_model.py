"""A whole model that decodes one sequence over and over, by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from transformers import DynamicCache

from sparsehpc.core.machine import resident_bytes
from sparsehpc.formats import kernels
from sparsehpc.latency.own_dense import use_own_dense
from sparsehpc.models.assemble import assemble
from sparsehpc.models.cache import cache_argument
from sparsehpc.models.decode import Decoder, unsupported

if TYPE_CHECKING:
    from sparsehpc.core.spec import Latency
    from sparsehpc.formats.base import Stored
    from sparsehpc.models.assemble import Assembled, Section
    from sparsehpc.models.snapshot import Snapshot

#: Larger than any cache; of more bytes the time is scaled.
_MOST_READ_BYTES = 1 << 30


class Decoding(Protocol):
    """A sequence that is decoded token by token."""

    def reset(self) -> None:
        """Begin another one."""

    def feed(self, ids: Sequence[int]) -> torch.Tensor:
        """Read tokens; returns the logits after the last (vocabulary)."""


class CachedModel:
    """Decode with transformers' own modules and cache: for families that `sparsehpc.models.decode` does not serve."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Begin another sequence."""
        self._cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> torch.Tensor:
        """Read tokens; returns the logits after the last (vocabulary)."""
        call = {**cache_argument(self.model, self._cache), "use_cache": True, "logits_to_keep": 1}
        logits: torch.Tensor = self.model(torch.tensor([list(ids)]), **call).logits
        return logits[0, -1]


class Times(NamedTuple):
    """Seconds of one sequence."""

    prompt_s: float
    tokens_s: list[float]


class TimedModel:
    """A model that is ready to decode, and what its weights take.

    Parameters
    ----------
    snapshot, dtype
        The model.
    sections
        Its weights.
    latency
        Length of a sequence.
    prompt
        Its first tokens.

    Attributes
    ----------
    decoder
        What decodes it: ``compiled`` (a token is one call) or ``lean`` of `sparsehpc.models.decode`; ``transformers``.
    resident_bytes
        Growth of the process: weights, caches and all, once a sequence was decoded.
    """

    def __init__(
        self, snapshot: Snapshot, dtype: str, sections: Iterable[Section], latency: Latency, prompt: Sequence[int]
    ) -> None:
        before = resident_bytes()
        model = assemble(snapshot.path, snapshot.structure, dtype, sections)
        use_own_dense(model)
        self.assembled: Assembled = model.sparsehpc
        self.sequence: Decoding
        if unsupported(model) is None:
            self.sequence = Decoder(model, latency.prompt_tokens + latency.new_tokens)
            self.decoder = "compiled" if self.sequence.compiled else "lean"
        else:
            self.sequence, self.decoder = CachedModel(model), "transformers"
        self.prompt, self.new_tokens = list(prompt), latency.new_tokens
        self.decode()
        self.resident_bytes = resident_bytes() - before

    def logits(self) -> torch.Tensor:
        """Logits after the prompt, float32; its last token is read alone, as those that are timed."""
        self.sequence.reset()
        first, last = self.prompt[:-1], self.prompt[-1:]
        if first:
            self.sequence.feed(first)
        return self.sequence.feed(last).float()

    def decode(self) -> Times:
        """Read the prompt and continue it greedily."""
        self.sequence.reset()
        clock = time.perf_counter
        start = clock()
        token = int(self.sequence.feed(self.prompt).argmax())
        prompt_s, tokens_s = clock() - start, []
        for _ in range(self.new_tokens):
            start = clock()
            token = int(self.sequence.feed([token]).argmax())
            tokens_s.append(clock() - start)
        return Times(prompt_s, tokens_s)

    def streamed(self) -> list[Stored]:
        """What one token reads: every linear, those that are multiplied at once as one, the head included."""
        found: dict[int, Stored] = {}
        for parameter in self.assembled.structure.parameters:
            if parameter.kind == "linear":
                shared = self.assembled.product(parameter.name)
                stored = self.assembled.linear(parameter.name)[0] if shared is None else shared.stored
                found[id(stored)] = stored
        return list(found.values())

    def pruned(self) -> list[Stored]:
        """Those of them that a format stores."""
        names = self.assembled.formats
        shared = {id(p): p.stored for name in names if (p := self.assembled.product(name)) is not None}
        alone = [self.assembled.linear(name)[0] for name in names if self.assembled.product(name) is None]
        return [*shared.values(), *alone]

    def reader(self) -> Callable[[], float] | None:
        """What gives the seconds of a plain read of as many bytes as a token streams; None without the extension.

        They lie in one piece: a call for each of the many small arrays would be timed too.
        """
        module = kernels.extension()
        if module is None:
            return None
        streamed = sum(stored.nbytes for stored in self.streamed())
        buffer, threads = torch.ones(min(streamed, _MOST_READ_BYTES), dtype=torch.uint8), torch.get_num_threads()

        def read() -> float:
            start = time.perf_counter()
            module.read(buffer.data_ptr(), buffer.numel(), threads)
            return (time.perf_counter() - start) * streamed / buffer.numel()

        return read

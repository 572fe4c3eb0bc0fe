"""Decoding one sequence: a pruned model in packed storage against the same loop on dense weights, and others."""

from __future__ import annotations

import functools
import gc
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench import Row
from jobs.bench._stack import CLOCKS, number, numbers, settle
from jobs.bench._timing import in_turns, spread
from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.spec import DTYPE_BYTES, Pruning, decimal_text

if TYPE_CHECKING:
    from sparsehpc.models.snapshot import Snapshot
    from sparsehpc.models.structure import Structure

#: From a number of new tokens to the tokens.
Generate = Callable[[int], list[int]]

_PROMPT_TOKENS = 16


def run(options: Mapping[str, str]) -> list[Row]:
    """Measure.

    Options: ``model`` (smollm2-135m), ``tokens`` (128), ``sparsities`` (30+50+70+90), ``format`` (auto), ``dtype``
    (float32), ``compiled`` (yes; no leaves torch.compile out), ``threads``, ``repeats`` (7), ``clock``.

    The pruned model is written and opened again, as ``sparsehpc prune`` and `sparsehpc.from_pretrained` do it; rows say
    what the files hold beside the bytes of the dense model.

    "own dense" is the same model in the same loop with our own dense kernels: only that ratio is a gain from sparsity.
    "transformers" is the unmodified model, "transformers compiled" adds torch.compile and a static cache. Every side
    reads a prompt of 16 tokens first. What that and the first token take is timed by itself (``prompt_ms``) and taken
    off: times and ratios are those of every further token.
    """
    known = {"model", "tokens", "sparsities", "format", "dtype", "compiled"}
    repeats, conditions = settle({"repeats": "7", **options}, known, "decode")
    dtype, variant = options.get("dtype", "float32"), options.get("format", "auto")
    tokens = number(options, "tokens", 128, least=2)

    import torch

    from sparsehpc.models.decode import Decoder
    from sparsehpc.models.sources import prepare
    from sparsehpc.text.build import generation_prompts
    from sparsehpc.text.tokenizer import load_tokenizer

    snapshot = prepare(options.get("model", "smollm2-135m"))
    prompt = generation_prompts(load_tokenizer(snapshot.path), 1, _PROMPT_TOKENS)[0].tolist()
    room = len(prompt) + tokens
    dense_model = _assembled(snapshot, Pruning(), "dense", dtype)
    dense = Decoder(dense_model, room)
    baselines: dict[str, Generate] = {
        "own dense": lambda count: list(dense.generate(prompt, count)),
        "transformers": _transformers(snapshot, dtype, prompt),
    }
    notes: dict[str, str] = {}
    if options.get("compiled", "yes") == "yes":
        compiled = _compiled(snapshot, dtype, prompt, tokens)
        if isinstance(compiled, str):
            notes["transformers compiled"] = compiled
        else:
            baselines["transformers compiled"] = compiled
    rows: list[Row] = []
    for percent in numbers(options, "sparsities", (30, 50, 70, 90)):
        pruning = Pruning(method="magnitude", pattern="unstructured", sparsity=decimal_text(f"0.{percent:02d}"))
        model, held = _saved(snapshot, pruning, variant, dtype)
        error = _check(snapshot, pruning, model, dtype, prompt)
        sparse = Decoder(model, room)
        sides: dict[str, Generate] = {"ours": _bound(sparse, prompt), **baselines}
        runs = {
            **{f"{name} prompt": functools.partial(side, 1) for name, side in sides.items()},
            **{name: functools.partial(side, tokens) for name, side in sides.items()},
        }
        with torch.inference_mode():
            times = in_turns(runs, repeats, CLOCKS[conditions["clock"]])
        sizes = _streamed_bytes(model.sparsehpc), _streamed_bytes(dense_model.sparsehpc)
        common = {
            "suite": "decode",
            "work": f"{snapshot.model} {variant}",
            "sparsity": percent / 100,
            "dtype": dtype,
            "params": snapshot.structure.params_total,
            "tokens": tokens,
            "prompt_tokens": len(prompt),
            "ceiling": ceiling(snapshot.structure, percent / 100, dtype),
            "bytes": sizes[0],
            "baseline_bytes": sizes[1],
            "model_bytes": held["arrays"],
            "baseline_model_bytes": held["dense"],
            "largest_error": error,
            "repeats": repeats,
            **conditions,
        }
        ours, low, high, first = _per_token(times, "ours", tokens)
        common |= {"ms_per_token": ours, "ms_low": low, "ms_high": high, "prompt_ms": first}
        common |= {"gb_per_s": sizes[0] / ours / 1e6}
        for name in baselines:
            theirs, low, high, first = _per_token(times, name, tokens)
            rows.append(
                {**common, "baseline": name, "ratio": theirs / ours, "baseline_ms": theirs, "baseline_ms_low": low,
                 "baseline_ms_high": high, "baseline_prompt_ms": first}
            )  # fmt: skip
        rows += [{**common, "baseline": name, "ratio": "not measured", "note": why} for name, why in notes.items()]
        del model, sparse, sides
        gc.collect()
    return rows


def ceiling(structure: Structure, sparsity: float, dtype: str) -> float:
    """Ratio of bytes that one token streams through linears, dense over bitmap: the head stays dense."""
    size = DTYPE_BYTES[dtype]
    prunable = sum(p.numel for p in structure.prunable(("attention", "mlp")))
    linears = sum(p.numel for p in structure.parameters if p.kind == "linear")
    left = (linears - prunable) * size + prunable * ((1 - sparsity) * size + 1 / 8)
    return linears * size / left


def _assembled(snapshot: Snapshot, pruning: Pruning, variant: str, dtype: str) -> Any:
    from sparsehpc.compress import Compression
    from sparsehpc.models.assemble import assemble

    sections = Compression(snapshot, pruning, variant, dtype=dtype).sections()
    return assemble(snapshot.path, snapshot.structure, dtype, sections)


def _saved(snapshot: Snapshot, pruning: Pruning, variant: str, dtype: str) -> tuple[Any, Mapping[str, int]]:
    """The model from a folder that was just written, and the bytes it holds there and would hold dense."""
    from sparsehpc.pretrained import compress, from_pretrained

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "packed"
        manifest = compress(snapshot, pruning, variant, folder, dtype=dtype)
        return from_pretrained(folder), manifest["bytes"]


def _bound(decoder: Any, prompt: list[int]) -> Generate:
    return lambda count: list(decoder.generate(prompt, count))


def _per_token(times: Mapping[str, list[float]], side: str, tokens: int) -> tuple[float, float, float, float]:
    """Milliseconds of every token after the first (median and quartiles), and of prompt and first token."""
    first = spread(times[f"{side} prompt"])[0]
    middle, low, high = ((value - first) / (tokens - 1) * 1e3 for value in spread(times[side]))
    return middle, low, high, first * 1e3


def _streamed_bytes(assembled: Any) -> int:
    """Bytes of every linear, the head included: what one token reads of the weights."""
    names = [p.name for p in assembled.structure.parameters if p.kind == "linear"]
    return sum(assembled.linear(name)[0].nbytes for name in names)


def _check(snapshot: Snapshot, pruning: Pruning, model: Any, dtype: str, prompt: list[int]) -> float:
    """Compare logits with the same weights as zeros in place in transformers' own modules; relative error."""
    import torch

    from sparsehpc.models.decode import LOGITS_TOLERANCE, Decoder

    masked = _assembled(snapshot, pruning, "masked", dtype)
    with torch.inference_mode():
        want = masked(torch.tensor([prompt])).logits[0, -1].float()
    got = Decoder(model, len(prompt)).feed(prompt).float()
    error = float((got - want).abs().max() / want.abs().max())
    if not error <= LOGITS_TOLERANCE[dtype]:
        raise SparseHPCError(f"packed and masked logits differ by {error:.2g} of the largest")
    return error


def _transformers(snapshot: Snapshot, dtype: str, prompt: list[int]) -> Generate:
    """The unmodified model with its own growing cache, greedily."""
    model = _plain(snapshot, dtype)

    def generate(tokens: int) -> list[int]:
        import torch
        from transformers import DynamicCache

        from sparsehpc.models.cache import cache_argument

        cache, ids, made = DynamicCache(config=model.config), torch.tensor([prompt]), []
        for _ in range(tokens):
            logits = model(ids, use_cache=True, logits_to_keep=1, **cache_argument(model, cache)).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            made.append(int(ids))
        return made

    return generate


def _compiled(snapshot: Snapshot, dtype: str, prompt: list[int], tokens: int) -> Generate | str:
    """The same compiled for single tokens on a static cache, or why that cannot be."""
    import torch
    from transformers import StaticCache

    from sparsehpc.models.cache import cache_argument

    model = _plain(snapshot, dtype)
    cache = StaticCache(config=model.config, max_cache_len=len(prompt) + tokens)
    step = torch.compile(model, dynamic=False)

    def generate(tokens: int) -> list[int]:
        cache.reset()
        ids, made, position = torch.tensor([prompt]), [], 0
        for _ in range(tokens):
            places = torch.arange(position, position + ids.shape[1])
            call = model if position == 0 else step
            arguments = {"position_ids": places[None], "use_cache": True, **cache_argument(model, cache)}
            logits = call(ids, **arguments, logits_to_keep=1).logits
            position += ids.shape[1]
            ids = logits[:, -1].argmax(-1, keepdim=True)
            made.append(int(ids))
        return made

    try:
        with torch.inference_mode():
            made = generate(tokens)
            want = _transformers(snapshot, dtype, prompt)(tokens)
    except Exception as error:  # noqa: BLE001 - a missing compiler and much else: the row says so
        return f"torch.compile failed here: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if made[0] != want[0] or (dtype == "float32" and made[:8] != want[:8]):
        return "the compiled model gave other tokens than the uncompiled one"
    return generate


def _plain(snapshot: Snapshot, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(snapshot.path), dtype=getattr(torch, dtype)).eval()
    for parameter in model.parameters():
        # Into torch's own memory: a mapped file's pages are read from disk within the timing.
        parameter.data = parameter.data.clone()
    return model

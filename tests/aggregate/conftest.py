"""Synthetic but realistic runs: shapes of real models, made-up behaviour, shards written as nodes write them."""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsehpc.core import schema, shards
from sparsehpc.core.keys import key_row
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.schema import Measurement
from sparsehpc.core.spec import DTYPE_BYTES, Calibration, Cell, Pruning, Windows


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    mlp: int
    vocab: int
    key_value: int
    biases: bool = False
    trained: bool = True
    published: str = "bfloat16"
    source_bytes: int = 0

    def tensors(self) -> Iterator[tuple[str, int, int, str, int | None, bool]]:
        """Name, rows, columns, group, layer, whether it is a linear weight."""
        yield "model.embed_tokens.weight", self.vocab, self.hidden, "embedding", None, False
        for layer in range(self.layers):
            for name, rows, columns, group in (
                ("self_attn.q_proj", self.hidden, self.hidden, "attention"),
                ("self_attn.k_proj", self.key_value, self.hidden, "attention"),
                ("self_attn.v_proj", self.key_value, self.hidden, "attention"),
                ("self_attn.o_proj", self.hidden, self.hidden, "attention"),
                ("mlp.gate_proj", self.mlp, self.hidden, "mlp"),
                ("mlp.up_proj", self.mlp, self.hidden, "mlp"),
                ("mlp.down_proj", self.hidden, self.mlp, "mlp"),
            ):
                yield f"model.layers.{layer}.{name}.weight", rows, columns, group, layer, True
                if self.biases:
                    yield f"model.layers.{layer}.{name}.bias", rows, 1, group, layer, False
            yield f"model.layers.{layer}.input_layernorm.weight", self.hidden, 1, "norm", layer, False
        yield "model.norm.weight", self.hidden, 1, "norm", None, False


SMOLLM = Shape(30, 576, 1536, 49152, 192, source_bytes=91_700_000)
OPT = Shape(12, 768, 2048, 50272, 768, biases=True, trained=False, published="float16", source_bytes=250_540_281)
TINY = Shape(2, 8, 16, 32, 8, source_bytes=2000)


def structure_rows(cell: Cell, shape: Shape) -> list[Measurement]:
    """Rows of size, sparsity and operations as the structure metric writes them."""
    rows: list[Measurement] = []
    size = DTYPE_BYTES[cell.dtype]
    tensors = list(shape.tensors())
    total = sum(r * c for _, r, c, *_ in tensors)
    sparsity = 0.0 if cell.pruning.is_dense else float(cell.pruning.fraction)
    for convention in ("unique", "study"):
        for name, height, width, group, layer, linear in tensors:
            numel = height * width
            # Deeper layers and the attention lose a little less, as magnitude pruning makes it.
            tilt = 1 + 0.3 * np.sin((layer or 0) * 0.7) * (1 if group == "mlp" else -1) * (1 - sparsity)
            zeros = int(numel * min(sparsity * tilt, 1.0)) if linear else 0
            if linear and cell.variant == "csr":
                parts = {"values": (numel - zeros) * size, "indices": (numel - zeros) * 4, "offsets": (height + 1) * 4}
                if convention == "study":
                    parts = {}
            elif linear and cell.variant == "bitmap":
                parts = {"values": (numel - zeros) * size, "mask": numel // 8}
            else:
                parts = {"bias" if name.endswith("bias") else "weight": numel * size}
            flops = 2 * numel if linear or (convention == "study" and group == "embedding") else 0
            for scope, subject, in_layer, in_group in (
                ("tensor", name, layer, group),
                ("layer", str(layer), layer, ""),
                ("group", group, None, group),
                ("model", "model", None, ""),
            ):
                if scope == "layer" and layer is None:
                    continue
                common: dict[str, Any] = {
                    "scope": scope,
                    "subject": subject,
                    "layer": in_layer,
                    "group": in_group,
                    "convention": convention,
                }
                rows += [
                    Measurement(metric="params_total", numerator=numel, unit="weights", **common),
                    Measurement(metric="params_nonzero", numerator=numel - zeros, unit="weights", **common),
                    Measurement(metric="sparsity", numerator=zeros, denominator=numel, reduction="ratio", **common),
                    Measurement(metric="flops_dense", numerator=flops, unit="flops", **common),
                    Measurement(metric="flops_theoretical", numerator=flops - 2 * zeros, unit="flops", **common),
                    Measurement(
                        metric="flops_executed",
                        numerator=flops - 2 * zeros * (cell.variant == "csr"),
                        unit="flops",
                        **common,
                    ),
                    *(
                        Measurement(metric="bytes_total", numerator=n, unit="bytes", component=part, **common)
                        for part, n in parts.items()
                    ),
                ]
                if linear:
                    rows.append(
                        Measurement(
                            metric="sparsity_prunable", numerator=zeros, denominator=numel, reduction="ratio", **common
                        )
                    )
        merged = _merged(rows, convention, total, size)
        rows = [row for row in rows if row.convention != convention] + merged
    rows += [
        Measurement("model", "model", "bytes_dense_float32", 4.0 * total, unit="bytes"),
        Measurement(
            "model", "model", "bytes_dense_published", float(DTYPE_BYTES[shape.published] * total), unit="bytes"
        ),
        Measurement(
            "model", "model", "attention_flops_per_context_token", 4.0 * shape.hidden * shape.layers, unit="flops"
        ),
    ]
    if shape.source_bytes:
        rows.append(Measurement("model", "model", "bytes_source_file", float(shape.source_bytes), unit="bytes"))
    return rows


def _merged(rows: list[Measurement], convention: str, total: int, size: int) -> list[Measurement]:
    """One row per figure, as the pipeline writes it, with shares and ratios added."""
    sums: dict[tuple[Any, ...], list[float]] = {}
    first: dict[tuple[Any, ...], Measurement] = {}
    for row in rows:
        if row.convention != convention:
            continue
        key = (row.scope, row.subject, row.metric, row.component)
        first.setdefault(key, row)
        entry = sums.setdefault(key, [0.0, 0.0])
        entry[0] += row.numerator
        entry[1] += row.denominator
    merged = []
    for key, (top, bottom) in sums.items():
        row = first[key]
        merged.append(row._replace(numerator=top, denominator=bottom if row.reduction == "ratio" else 1.0))
        if row.metric == "params_total":
            share = {"metric": "param_fraction", "unit": "1", "reduction": "ratio"}
            merged.append(row._replace(numerator=top, denominator=float(total), **share))
    held = sum(top for key, (top, _) in sums.items() if key[0] == "model" and key[2] == "bytes_total")
    whole = Measurement("model", "model", "bytes_ratio", held, float(total * size), "ratio", convention=convention)
    return [*merged, whole]


def window_rows(cell: Cell, shape: Shape, windows: int, seed: int = 0) -> list[Measurement]:
    """Rows of behaviour: smooth in sparsity, noisy between windows, skewed as real texts are."""
    text = np.random.default_rng([seed, 7])
    tokens = text.integers(40, 400, windows)
    hard = text.gamma(4.0, 0.25, windows)
    own = np.random.default_rng([seed, int(cell.cell_id[:8], 16)])
    s = 0.0 if cell.pruning.is_dense else float(cell.pruning.fraction)
    worse = {"random": 3.0, "magnitude": 1.0}.get(cell.pruning.method, 0.8)
    dense_nats = (2.6 + 0.6 * hard) if shape.trained else np.full(windows, np.log(shape.vocab) + 0.05)
    damage = worse * (2.2 * s**3 + 8 * max(s - 0.45, 0.0) ** 1.2) * (0.6 + 0.4 * hard)
    damage = damage * own.gamma(20.0, 0.05, windows) if s else np.zeros(windows)
    if not shape.trained:
        damage = damage * 0.01
    keep = np.exp(-1.4 * worse * s**1.3 * (0.7 + 0.3 * hard)) if s else np.ones(windows)
    if s and cell.variant == "csr":
        keep = keep - 1e-4
    rows = []
    for index in range(windows):
        n = int(tokens[index])
        equal = round(n * float(keep[index]))
        dense_right = int(n * (0.45 if shape.trained else 0.0))
        both = int(dense_right * keep[index])
        nats, dense = (dense_nats[index] + damage[index]) * (n - 1), dense_nats[index] * (n - 1)
        size = 4.2 * n
        common = {"scope": "window", "subject": str(index)}
        rows += [
            Measurement(metric="top1_agreement", numerator=equal, denominator=n, reduction="ratio", **common),
            Measurement(
                metric="kl", numerator=damage[index] * 0.8 * n, denominator=n, reduction="ratio", unit="nats", **common
            ),
            Measurement(metric="nll", numerator=nats, denominator=n - 1, reduction="ratio", unit="nats", **common),
            Measurement(
                metric="nll_dense", numerator=dense, denominator=n - 1, reduction="ratio", unit="nats", **common
            ),
            Measurement(metric="perplexity", numerator=nats, denominator=n - 1, reduction="exp_ratio", **common),
            Measurement(metric="perplexity_dense", numerator=dense, denominator=n - 1, reduction="exp_ratio", **common),
            Measurement(
                metric="bits_per_byte", numerator=nats / np.log(2), denominator=size, reduction="ratio", **common
            ),
            Measurement(
                metric="bits_per_byte_dense", numerator=dense / np.log(2), denominator=size, reduction="ratio", **common
            ),
            Measurement(metric="accuracy", numerator=both, denominator=n - 1, reduction="ratio", **common),
            Measurement(metric="accuracy_dense", numerator=dense_right, denominator=n - 1, reduction="ratio", **common),
            Measurement(metric="both_right", numerator=both, unit="tokens", **common),
            Measurement(metric="dense_only_right", numerator=dense_right - both, unit="tokens", **common),
            Measurement(metric="variant_only_right", numerator=1, unit="tokens", **common),
            Measurement(metric="both_wrong", numerator=n - 2 - dense_right, unit="tokens", **common),
            Measurement(
                metric="mean_rank", numerator=n * (1 + 30 * damage[index]), denominator=n, reduction="ratio", **common
            ),
        ]
    rows += bin_rows(float(keep.mean()), 50 * windows)
    common = {"scope": "model", "subject": "model"}
    if cell.is_dense:
        rows += floor_rows()
    rows += [
        Measurement(
            metric="generation_first_divergence",
            numerator=20 * 32 * keep.mean() ** 2,
            denominator=20,
            reduction="ratio",
            unit="tokens",
            **common,
        ),
        Measurement(
            metric="generation_share_equal",
            numerator=20 * 32 * keep.mean() ** 2,
            denominator=640,
            reduction="ratio",
            **common,
        ),
        Measurement(
            metric="generation_distinct_bigrams",
            numerator=500 * (1 - 0.5 * s),
            denominator=620,
            reduction="ratio",
            **common,
        ),
        Measurement(
            metric="generation_distinct_bigrams_dense", numerator=500, denominator=620, reduction="ratio", **common
        ),
    ]
    return rows


def bin_rows(keep: float, positions: int) -> list[Measurement]:
    """Agreement by margin and position: what dense is sure of stays longest."""
    rows = []
    for subject, power in (
        ("margin [3, inf)", 0.3),
        ("margin [0, 0.1)", 3.0),
        ("margin [0.1, 3)", 1.0),
        ("position [0, 16)", 1.2),
        ("position [16, inf)", 0.9),
    ):
        equal = round(positions * keep**power)
        rows += [
            Measurement("bin", subject, "top1_agreement", equal, positions, "ratio"),
            Measurement("bin", subject, "kl", positions - equal, positions, "ratio", "nats"),
            Measurement("bin", subject, "dense_only_right", (positions - equal) // 2, unit="tokens"),
            Measurement("bin", subject, "variant_only_right", (positions - equal) // 5, unit="tokens"),
        ]
    return rows


def floor_rows() -> list[Measurement]:
    """The dense model against itself: one of 1,500 positions differs."""
    return [
        Measurement("model", "model", "floor_top1_agreement", 1499, 1500, "ratio"),
        Measurement("model", "model", "floor_top1_differs_max", 0.01, 1, "max"),
        Measurement("model", "model", "floor_kl", 3e-9, 1500, "ratio", "nats"),
        Measurement("model", "model", "floor_kl_max", 4e-12, 1, "max", "nats"),
        Measurement("model", "model", "floor_positions", 1500, unit="tokens"),
        Measurement("model", "model", "floor_nll", 1.5e-4, 1500, "ratio", "nats"),
        Measurement("model", "model", "floor_nll_max", 3e-7, 1, "max", "nats"),
    ]


def cell_row(cell: Cell, shape: Shape, mark: str = "") -> dict[str, Any]:
    """Row of a done cell."""
    return {
        **key_row(cell),
        "trained": shape.trained,
        "published_dtype": shape.published,
        "source_bytes": shape.source_bytes,
        "snapshot_digest": "ab" * 32,
        "evaluation_digest": "cd" * 32,
        "calibration_digest": None,
        "lossless": True,
        "kernel": {"csr": "torch.sparse_csr (MKL)"}.get(cell.variant, "torch dense"),
        "mark": mark,
        "notes": "{}",
        "load_s": 0.5,
        "dense_s": 11.0,
        "prune_s": 2.0,
        "encode_s": 0.4,
        "evaluate_s": 14.0,
        "wall_s": 40.0,
        "peak_rss_bytes": 700 * 2**20,
        "threads": 2,
        "cpu_model": "Intel Xeon Platinum 8481C",
        "device_name": "Intel Xeon Platinum 8481C",
        "started_at": "2026-01-05T10:00:00+00:00",
        "job_id": "local",
        "attempt": 0,
        "provenance": json.dumps({"sparsehpc": "0.1.0", "commit": "e902364", "torch": "2.13.0", "python": "3.11.7"}),
    }


def cells_of(
    model: str,
    sparsities: tuple[str, ...] = ("0.1", "0.2", "0.3", "0.5"),
    methods: tuple[str, ...] = ("magnitude",),
    variants: tuple[str, ...] = ("masked", "csr"),
    windows: int = 40,
    seeds: tuple[int | None, ...] = (None,),
    dtype: str = "float32",
) -> list[Cell]:
    """A grid with its dense reference first."""
    text = Windows(corpus="samples", windows=windows, window_tokens=512)
    cells = [Cell(model=model, dtype=dtype, evaluation=text)]
    for method in methods:
        for seed in seeds:
            learned = (
                None if seed is None else Calibration(corpus="python-docs", windows=32, window_tokens=512, seed=seed)
            )
            cells += [
                Cell(
                    model=model,
                    dtype=dtype,
                    evaluation=text,
                    variant=variant,
                    pruning=Pruning(method=method, pattern="unstructured", sparsity=s, calibration=learned, seed=718),
                )
                for s in sparsities
                for variant in variants
            ]
    return cells


def write_plan(run: RunFolder, cells: list[Cell]) -> None:
    rows = [{"order": n, **key_row(cell), "kind": cell.kind, "spec": cell.to_json()} for n, cell in enumerate(cells)]
    run.root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.PLAN), run.plan)
    run.study.write_text('[study]\nname = "synthetic"\n')
    run.provenance.write_text(json.dumps({"sparsehpc": "0.1.0", "commit": "e902364", "python": "3.11.7"}))


def write_cell(run: RunFolder, cell: Cell, shape: Shape) -> None:
    rows = structure_rows(cell, shape) + window_rows(cell, shape, cell.evaluation.windows)
    top = sum(row.numerator for row in rows if row.metric == "nll")
    tokens = sum(row.denominator for row in rows if row.metric == "nll")
    mark = "worse than guessing" if top / tokens > np.log(shape.vocab) else ""
    shards.write_shard(run.cell(cell.cell_id), cell_row(cell, shape, mark), rows)


def write_run(root: Path, shapes: dict[str, Shape] | None = None, **grid: Any) -> RunFolder:
    """A complete run of one or several models."""
    run = RunFolder(root)
    shapes = shapes or {"tiny": TINY}
    cells = [(cell, shape) for model, shape in shapes.items() for cell in cells_of(model, **grid)]
    write_plan(run, [cell for cell, _ in cells])
    for cell, shape in cells:
        write_cell(run, cell, shape)
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """``make_run(shapes, **grid)`` writes a run folder; see `write_run`."""

    def make(shapes: dict[str, Shape] | None = None, name: str = "run", **grid: Any) -> RunFolder:
        return write_run(tmp_path / name, shapes, **grid)

    return make


@pytest.fixture(scope="session")
def synthetic() -> Any:
    """This module: tests need its shapes and writers."""
    import sys

    return sys.modules[__name__]


def _lacking(words: str) -> None:
    """Skip a browser test, or fail it where `SPARSEHPC_REQUIRE_BROWSER` says that all it needs is installed."""
    if os.environ.get("SPARSEHPC_REQUIRE_BROWSER"):
        pytest.fail(words)
    pytest.skip(words)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    found = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
    if found is None:
        _lacking("no Chromium on PATH: the page is not tested in a browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _lacking("playwright is not installed: the page is not tested in a browser")
    with sync_playwright() as engine:
        started = engine.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    if importlib.util.find_spec("axe_core_python") is None:
        _lacking("axe-core-python is not installed: accessibility is not tested")
    return (importlib.resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def open_report(browser: Any) -> Iterator[Callable[..., Any]]:
    """``open_report(page, state, **options)`` without network; a warning or an error that it logs fails the test.

    The window is so high that every view is near it, and drawn at once; ``viewport`` asks for another.
    """
    contexts: list[Any] = []
    said: list[str] = []

    def open_it(path: Path, state: str = "", **options: Any) -> Any:
        options.setdefault("viewport", {"width": 1280, "height": 6000})
        context = browser.new_context(offline=True, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri() + state)
        if options.get("java_script_enabled", True):
            page.wait_for_function("document.documentElement.dataset.ready === '1'", timeout=200_000)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert said == []

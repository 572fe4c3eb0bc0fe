"""A group of cells through the walk: exact counts, packing independence, failures that stay with their cell."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, LLAMA, OPT
from torch.overrides import TorchFunctionMode

from sparsehpc.behaviour import GENERATED_TOKENS
from sparsehpc.core.errors import CellError, SparseHPCError
from sparsehpc.core.spec import Calibration, Cell, Pruning, Windows
from sparsehpc.models.memory import kept_tracks
from sparsehpc.pipeline import run_cells
from sparsehpc.pruning.base import METHODS
from sparsehpc.results import CellResult
from sparsehpc.text.windows import TokenWindows

EVALUATION = Windows(corpus="samples", windows=4, window_tokens=64)
CALIBRATION = Calibration(corpus="python-docs", windows=2, window_tokens=32)


def windows(lengths, seed=0, every_position=True):
    generator = np.random.default_rng(seed)
    return TokenWindows(
        ids=tuple(generator.integers(0, 512, n) for n in lengths),
        text_bytes=tuple(3 * n for n in lengths),
        every_position=every_position,
        starts=tuple(range(len(lengths))),
        source="random tokens",
    )


TEXT = windows((5, 17, 30, 17))
PROMPTS = np.random.default_rng(1).integers(0, 512, (3, 6))


def cell(variant="masked", method="magnitude", sparsity="0.3", **changes):
    pruning = Pruning(method=method, pattern="unstructured", sparsity=sparsity, **changes)
    return Cell(model="m", evaluation=EVALUATION, variant=variant, pruning=pruning)


DENSE = Cell(model="m", evaluation=EVALUATION)


def run(cells, snapshot, tmp_path, text=TEXT, prompts=PROMPTS, memory_bytes=None, calibrations=None):
    results: dict[str, CellResult | CellError] = {}

    def finished(done, result):
        assert done.cell_id not in results
        results[done.cell_id] = result

    run_cells(
        cells,
        snapshot,
        text,
        calibrations or {},
        prompts,
        scratch=tmp_path,
        memory_bytes=memory_bytes,
        finished=finished,
    )
    assert set(results) == {c.cell_id for c in cells}
    return results


def total(result, metric, scope="window", convention=""):
    rows = [r for r in result.measurements if (r.metric, r.scope, r.convention) == (metric, scope, convention)]
    return sum(r.numerator for r in rows), sum(r.denominator for r in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_exact_for_every_family(family, tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(FAMILIES[family])
    cells = [DENSE, cell(), cell("csr"), cell(sparsity="1")]
    results = run(cells, snapshot, tmp_path)
    prunable = sum(p.numel for p in snapshot.structure.prunable(("attention", "mlp")))
    zeros, of = total(results[cells[1].cell_id], "sparsity_prunable", "model", "unique")
    assert (zeros, of) == (3 * prunable // 10, prunable)
    assert total(results[cells[3].cell_id], "sparsity_prunable", "model", "unique") == (prunable, prunable)
    assert total(results[DENSE.cell_id], "top1_agreement") == (TEXT.tokens, TEXT.tokens)
    assert total(results[DENSE.cell_id], "kl")[0] == 0
    same = total(results[cells[2].cell_id], "top1_differs_from_masked")
    assert same[1] == TEXT.tokens


def test_planned_bytes_of_kept_weights_are_those_that_are_stored(tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(LLAMA)
    cells = [DENSE, cell(), cell("csr"), cell("csr-int64", sparsity="0.5")]
    results = run(cells, snapshot, tmp_path)
    linears = {p.name for p in snapshot.structure.prunable(("attention", "mlp"))}
    for one, planned in zip(cells, kept_tracks(snapshot.structure, cells), strict=True):
        rows = [r for r in results[one.cell_id].measurements if r.scope == "tensor" and r.convention == "unique"]
        stored = sum(r.numerator for r in rows if r.metric == "bytes_total" and r.subject in linears)
        # The plan spreads a global budget evenly over the matrices and rounds it in each.
        assert planned == pytest.approx(stored, rel=1e-3)


def test_zero_percent_is_dense_bit_for_bit(tiny_snapshot, tmp_path):
    cells = [DENSE, cell(sparsity="0")]
    dense, pruned = run(cells, tiny_snapshot(LLAMA), tmp_path).values()
    assert total(pruned, "kl")[0] == 0
    assert total(pruned, "nll") == total(dense, "nll")


def figures_of(result):
    return [tuple(row) for row in result.measurements]


def test_results_do_not_depend_on_packing_or_memory(tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(OPT)
    cells = [DENSE, cell(), cell("csr"), cell("csr-int64", sparsity="0.5"), cell(method="random")]
    together = run(cells, snapshot, tmp_path)
    for one in cells:
        assert figures_of(run([one], snapshot, tmp_path)[one.cell_id]) == figures_of(together[one.cell_id])
    spilled = run(cells, snapshot, tmp_path, memory_bytes=1)
    for one in cells:
        assert figures_of(spilled[one.cell_id]) == figures_of(together[one.cell_id])
    assert any(tmp_path.rglob("*.safetensors"))


def test_weights_are_pruned_once_whatever_stores_them(tiny_snapshot, tmp_path, monkeypatch):
    """Two combinations, three variants: every section is pruned twice in all, the dense stream runs once."""
    snapshot = tiny_snapshot(LLAMA)
    method = METHODS.get("magnitude")
    sections = []
    prune = method.prune_section

    def counted(self, weights, sites, statistics):
        sections.extend([sorted(weights)] if weights else [])
        return prune(self, weights, sites, statistics)

    monkeypatch.setattr(method, "prune_section", counted)
    run([DENSE, cell(), cell("csr"), cell("bitmap"), cell("csr", sparsity="0.5")], snapshot, tmp_path)
    assert len(sections) == 2 * snapshot.structure.layers
    names = sorted(p.name for p in snapshot.structure.prunable(("attention", "mlp")))
    assert sorted(name for section in sections for name in section) == sorted([*names, *names])


def test_calibrated_methods_run_in_the_walk(tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(LLAMA)
    cells = [cell("masked", "wanda", calibration=CALIBRATION), cell("csr", "wanda", calibration=CALIBRATION)]
    results = run(cells, snapshot, tmp_path, calibrations={CALIBRATION: windows((32, 32), 5, False)})
    first = results[cells[0].cell_id]
    per_row = sum(p.shape[0] * (3 * p.shape[1] // 10) for p in snapshot.structure.prunable(("attention", "mlp")))
    assert total(first, "sparsity_prunable", "model", "unique")[0] == per_row
    assert first.row["calibration_digest"] is not None


def test_statistics_come_from_the_pruned_stream(tiny_snapshot, tmp_path):
    """Wanda's mask of a later layer depends on what was pruned before it; of the first layer it does not."""
    from sparsehpc.models.stream import LayerWalk
    from sparsehpc.pipeline import _Walk

    snapshot = tiny_snapshot(LLAMA)
    seen: dict[str, dict[str, torch.Tensor]] = {}
    text = windows((32, 32), 5, False)
    for sparsity in ("0.2", "0.8"):
        one = cell("masked", "wanda", sparsity, calibration=CALIBRATION)
        with torch.inference_mode():
            walk = _Walk([one], snapshot, TEXT, {CALIBRATION: text}, None, tmp_path, None, None, None)
            walk._survey()
            walk._embed()
            combination = walk.combinations[0]
            found = {}
            for layer in range(2):
                tensors = walk.walk.load(layer)
                statistics = combination.statistics(walk.walk, layer, combination.in_layer(layer))
                found |= {name: values["input_norm"].clone() for name, values in statistics.items()}
                pruned = combination.prune(combination.in_layer(layer), tensors, statistics)
                combination.advance_calibration(walk.walk, layer, pruned)
            seen[sparsity] = found
    first, second = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(seen["0.2"][first], seen["0.8"][first])
    assert not torch.equal(seen["0.2"][second], seen["0.8"][second])
    # And they are the norms of what the layer really reads.
    with torch.inference_mode():
        walk = LayerWalk(snapshot)
        walk.load_outside()
        walk.load(0)
        squares = torch.zeros(64, dtype=torch.float64)
        for ids in text.ids:
            hidden, call = walk.embed(torch.from_numpy(ids)[None])

            def add(name, x):
                if name == first:
                    squares.add_(x.double().square().sum((0, 1)))

            with walk.observing([first], add):
                walk.run(0, hidden, call)
    torch.testing.assert_close(seen["0.2"][first], squares.sqrt(), rtol=1e-12, atol=0)


def test_q_k_v_share_one_accumulator(tiny_snapshot, tmp_path, monkeypatch):
    import sparsehpc.combinations as combinations

    made = []
    real = combinations.collector

    def counting(*args):
        made.append(args)
        return real(*args)

    monkeypatch.setattr(combinations, "collector", counting)
    one = cell("masked", "wanda", calibration=CALIBRATION)
    run([one], tiny_snapshot(LLAMA), tmp_path, calibrations={CALIBRATION: windows((32,), 5, False)}, prompts=None)
    # Per layer: q/k/v, o, gate/up, down.
    assert len(made) == 4 * LLAMA["num_hidden_layers"]


@pytest.mark.parametrize("family", ["llama", "llama-untied", "opt"])
def test_a_pruned_head_is_a_copy_of_its_own(family, tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(FAMILIES[family])
    plain, with_head = cell("csr"), cell("csr", targets=("attention", "mlp", "lm_head"))
    results = run([plain, with_head], snapshot, tmp_path)
    head = next(p for p in snapshot.structure.parameters if p.group == "lm_head")
    prunable = sum(p.numel for p in snapshot.structure.prunable(("attention", "mlp"))) + head.numel
    assert total(results[with_head.cell_id], "sparsity_prunable", "model", "unique") == (3 * prunable // 10, prunable)
    parameters, _ = total(results[with_head.cell_id], "params_total", "model", "unique")
    assert parameters == snapshot.structure.params_total + (head.numel if head.tied_to else 0)
    rows = [r for r in results[with_head.cell_id].measurements if (r.scope, r.subject) == ("group", "lm_head")]
    stored = {r.component: r.numerator for r in rows if r.metric == "bytes_total" and r.convention == "unique"}
    assert stored["indices"] == stored["values"] > 0
    assert total(results[with_head.cell_id], "kl") != total(results[plain.cell_id], "kl")


def test_a_pruned_embedding_changes_what_enters_the_first_layer(tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(LLAMA)
    one = cell(targets=("embedding",), sparsity="0.5")
    result = run([one, DENSE], snapshot, tmp_path)[one.cell_id]
    embedding = next(p for p in snapshot.structure.parameters if p.group == "embedding")
    zeros, of = total(result, "sparsity_prunable", "model", "unique")
    assert (zeros, of) == (embedding.numel // 2, embedding.numel)
    assert total(result, "kl")[0] > 0
    # The head is tied to it, and plain transformers with the same zeros says the same.
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(snapshot.path).eval()
    weight = whole.get_input_embeddings().weight.data
    order = weight.abs().flatten().sort(stable=True).indices[: embedding.numel // 2]
    weight.view(-1)[order] = 0
    with torch.inference_mode():
        nll = 0.0
        for ids in TEXT.ids:
            logits = whole(torch.from_numpy(ids)[None], use_cache=False).logits[0].double()
            nll -= float(torch.log_softmax(logits[:-1], -1).gather(-1, torch.from_numpy(ids)[1:, None]).sum())
    assert total(result, "nll")[0] == pytest.approx(nll, rel=1e-6)


@pytest.mark.parametrize("variant", ["dense-bf16", "dense-int8", "dense-q4"])
def test_dense_references_are_cells_without_a_method(tiny_snapshot, tmp_path, variant):
    reference = Cell(model="m", evaluation=EVALUATION, variant=variant)
    results = run([DENSE, reference], tiny_snapshot(LLAMA), tmp_path)
    result = results[reference.cell_id]
    assert not result.row["lossless"]
    held = total(result, "bytes_total", "model", "unique")[0]
    assert held < total(results[DENSE.cell_id], "bytes_total", "model", "unique")[0]
    assert total(result, "kl")[0] > 0
    # Every other cell says what it would hold, without storing it.
    name = f"bytes_{variant.replace('-', '_')}"
    assert [total(r, name, "model")[0] for r in results.values()] == [held, held]


def test_nan_fails_only_the_cell_it_is_in(tiny_snapshot, tmp_path, monkeypatch):
    from sparsehpc.pruning.methods.random import Random

    real = Random.prune

    def poisoned(self, weight, site, statistics):
        result = real(self, weight, site, statistics)
        if site.parameter.layer == 1:
            result.weight[0, 0] = float("nan")
        return result

    monkeypatch.setattr(Random, "prune", poisoned)
    bad, good = cell(method="random"), cell()
    results = run([DENSE, bad, good], tiny_snapshot(LLAMA), tmp_path)
    error = results[bad.cell_id]
    assert isinstance(error, CellError)
    assert "layer 1" in str(error)
    assert isinstance(results[good.cell_id], CellResult)
    assert isinstance(results[DENSE.cell_id], CellResult)


def test_generation_equals_transformers(tiny_snapshot, tmp_path):
    from transformers import AutoModelForCausalLM

    from sparsehpc.formats.base import FORMATS
    from sparsehpc.models.generate import generate
    from sparsehpc.models.spool import LayerStore
    from sparsehpc.models.stream import LayerWalk

    for config in (LLAMA, OPT, FAMILIES["gpt_neox"]):
        snapshot = tiny_snapshot(config)
        whole = AutoModelForCausalLM.from_pretrained(snapshot.path).eval()
        prompts = torch.from_numpy(PROMPTS)
        with torch.inference_mode():
            expected = whole.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=GENERATED_TOKENS,
                min_new_tokens=GENERATED_TOKENS,
                do_sample=False,
                eos_token_id=511,
                pad_token_id=511,
            )[:, prompts.shape[1] :]
            walk = LayerWalk(snapshot)
            store, plain = LayerStore(), []
            for layer in range(walk.structure.layers):
                tensors = walk.load(layer)
                linears = {p.name for p in walk.structure.in_layer(layer) if p.kind == "linear"}
                plain.append({n: t for n, t in tensors.items() if n not in linears})
                store.put(layer, "dense", {n: FORMATS.get("dense").encode(tensors[n]) for n in linears})
                walk.unload(layer)
            walk.load_outside()
            got = generate(walk, prompts, GENERATED_TOKENS, plain, store)
        assert torch.equal(got, expected)


def test_calibration_goes_on_where_the_masked_reference_failed(tiny_snapshot, tmp_path, monkeypatch):
    """A mask must not depend on which of its variants can be stored."""
    from sparsehpc.formats.layouts.dense import Masked
    from sparsehpc.tracks import Track

    calibrations = {CALIBRATION: windows((32, 32), 5, False)}
    cells = [
        cell("csr", "wanda", "0.5", calibration=CALIBRATION),
        cell("masked", "wanda", "0.5", calibration=CALIBRATION),
    ]
    expected = run(cells, tiny_snapshot(LLAMA), tmp_path, calibrations=calibrations)
    real = Track.encode

    def encode(self, weights, pattern, walk):
        if self.variant == Masked.name:
            raise ValueError("no room for it")
        return real(self, weights, pattern, walk)

    monkeypatch.setattr(Track, "encode", encode)
    found = run(cells, tiny_snapshot(LLAMA), tmp_path, calibrations=calibrations)
    assert isinstance(found[cells[1].cell_id], ValueError)
    # Only the comparison with the failed masked model is missing.
    compared = {"top1_differs_from_masked"}
    assert figures_of(found[cells[0].cell_id]) == [
        r for r in figures_of(expected[cells[0].cell_id]) if r[2] not in compared
    ]


def test_a_format_that_fails_fails_only_its_cell(tiny_snapshot, tmp_path, monkeypatch):
    from sparsehpc.formats.base import FORMATS

    def encode(*args):
        raise ValueError("the column index does not fit")

    monkeypatch.setattr(FORMATS.get("csr"), "encode", encode)
    cells = [DENSE, cell(), cell("csr"), cell("bitmap")]
    results = run(cells, tiny_snapshot(LLAMA), tmp_path)
    assert [isinstance(results[c.cell_id], CellResult) for c in cells] == [True, True, False, True]
    assert "column index" in str(results[cells[2].cell_id])


def test_nan_in_the_dense_head_is_an_error_of_the_dense_model(tiny_snapshot, tmp_path, monkeypatch):
    from sparsehpc.models.stream import LayerWalk

    real = LayerWalk.head
    monkeypatch.setattr(LayerWalk, "head", lambda self, hidden: real(self, hidden) * float("nan"))
    with pytest.raises(CellError, match="dense model"):
        run([DENSE, cell()], tiny_snapshot(LLAMA), tmp_path)


def test_a_survey_that_fails_fails_only_its_combinations(tiny_snapshot, tmp_path, monkeypatch):
    from sparsehpc.pruning.methods.magnitude import Magnitude

    def survey_all(methods, parameters, read):
        raise CellError("model.layers.0.mlp.up_proj.weight holds NaN")

    monkeypatch.setattr(Magnitude, "survey_all", survey_all)
    cells = [DENSE, cell(), cell(method="random")]
    results = run(cells, tiny_snapshot(LLAMA), tmp_path)
    assert [isinstance(results[c.cell_id], CellResult) for c in cells] == [True, False, True]
    assert "up_proj" in str(results[cells[1].cell_id])


def test_calibration_text_that_overflows_fails_only_what_learns_from_it(tiny_snapshot, tmp_path, monkeypatch):
    """The last layer's outputs: no linear reads them, so that no statistic of inputs would show it."""
    from sparsehpc.models.stream import LayerWalk

    real, last = LayerWalk.run, LLAMA["num_hidden_layers"] - 1

    def run_layer(self, layer, hidden, call):
        found = real(self, layer, hidden, call)
        return found * float("inf") if layer == last and hidden.shape[1] == 32 else found

    monkeypatch.setattr(LayerWalk, "run", run_layer)
    pruning = Pruning(method="block-influence", pattern="layers", sparsity="0.4", calibration=CALIBRATION)
    cells = [DENSE, cell(), dataclasses.replace(cell(), pruning=pruning)]
    text = {CALIBRATION: windows((32, 32), 5, False)}
    results = run(cells, tiny_snapshot(LLAMA), tmp_path, calibrations=text)
    assert [isinstance(results[c.cell_id], CellResult) for c in cells] == [True, True, False]
    reason = f"layer {last} of the dense model gives NaN or Inf on the calibration text"
    assert reason in str(results[cells[2].cell_id])


@pytest.mark.model
@pytest.mark.slow
def test_bitmap_q4_keeps_the_trained_model_bit_for_bit(tmp_path, monkeypatch):
    """Mask and the source's own 4-bit codes: exact, and smaller than the 4-bit file's own tensors."""
    from sparsehpc.models.gguf_source import source_of
    from sparsehpc.models.sources import prepare
    from sparsehpc.models.stream import LayerWalk
    from sparsehpc.pruning.base import Site, make_method
    from sparsehpc.tracks import Track

    monkeypatch.setenv("SPARSEHPC_HOME", str(tmp_path))
    walk = LayerWalk(prepare("smollm2-135m"))
    parameters = walk.structure.prunable(("attention", "mlp"))
    bits = {"0.3": 4.8, "0.5": 4.0, "0.7": 3.2}
    for sparsity, expected in bits.items():
        pruning = Pruning(method="magnitude-layerwise", pattern="unstructured", sparsity=sparsity)
        method, track = make_method(pruning), Track("bitmap-q4", None, frozenset())
        for index, parameter in enumerate(parameters[:7]):
            weight = walk.read([parameter.name])[parameter.name]
            pruned = method.prune(weight, Site(parameter, index), {}).weight
            stored = track.encode({parameter.name: pruned}, "unstructured", walk)[parameter.name]
            assert torch.equal(stored.decode(), pruned)
            source_bytes = source_of(walk.snapshot).raw(parameter.name)[1].nbytes
            assert source_bytes * 8 == 5 * parameter.numel
            assert stored.nbytes < source_bytes
            # Row offsets and the padding of the last codes come on top of the bits a weight needs.
            assert stored.nbytes * 8 / parameter.numel == pytest.approx(expected, abs=0.15)


def test_cells_of_two_walks_are_refused(tiny_snapshot, tmp_path):
    other = dataclasses.replace(DENSE, dtype="bfloat16")
    with pytest.raises(SparseHPCError, match="2 walks"):
        run([DENSE, other], tiny_snapshot(LLAMA), tmp_path)


class PretendCuda(TorchFunctionMode):
    """Lets ``cuda`` stand for the CPU, and records what device our own code asks for.

    A transfer or allocation that asks for the accelerator is redirected; one that asks for nothing would have stayed
    on the host, and is recorded with the place it was made at.
    """

    FACTORIES = (torch.zeros, torch.empty, torch.ones, torch.full, torch.arange, torch.tensor)

    def __init__(self):
        super().__init__()
        self.on_device: set[str] = set()
        self.on_host: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        moves = function in (torch.Tensor.to, *self.FACTORIES)
        wanted = "cuda" if "cuda" in args or kwargs.get("device") == "cuda" else None
        if moves:
            frame = sys._getframe(1)
            while frame is not None and f"{os.sep}sparsehpc{os.sep}" not in frame.f_code.co_filename:
                if f"{os.sep}transformers{os.sep}" in frame.f_code.co_filename:
                    frame = None
                    break
                frame = frame.f_back
            if frame is not None:
                place = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
                existing = args[0].device if function is torch.Tensor.to and args else None
                if wanted or (existing is not None and existing.type != "cpu"):
                    self.on_device.add(place)
                elif function is not torch.Tensor.to and "device" not in kwargs:
                    self.on_host.add(place)
        args = tuple("cpu" if a == "cuda" else a for a in args) if wanted else args
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


def test_weights_and_windows_go_to_the_cells_device(tiny_snapshot, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "pretended")
    cells = [dataclasses.replace(one, device="cuda") for one in (DENSE, cell(), cell("csr"))]
    with PretendCuda() as devices:
        run(cells, tiny_snapshot(LLAMA), tmp_path)
    # Weights, buffers, windows and dummy ids of the head ask for the accelerator ...
    assert {"snapshot.<dictcomp>", "snapshot.read"} & devices.on_device
    assert {"stream.__init__", "stream.embed", "stream.head"} <= devices.on_device
    # ... and nothing of the walk allocates on the host.
    walk = {
        place
        for place in devices.on_host
        if place.split(".")[0] in ("stream", "pipeline", "tracks", "combinations", "behaviour", "positions")
    }
    assert walk == set()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the GPU path was not run")
def test_gpu_agrees_with_cpu(tiny_snapshot, tmp_path):
    snapshot = tiny_snapshot(LLAMA)
    on_cpu = run([DENSE, cell()], snapshot, tmp_path)
    on_gpu = run(
        [dataclasses.replace(DENSE, device="cuda"), dataclasses.replace(cell(), device="cuda")], snapshot, tmp_path
    )
    for (_, a), (_, b) in zip(on_cpu.items(), on_gpu.items(), strict=True):
        assert total(a, "nll")[0] == pytest.approx(total(b, "nll")[0], rel=1e-4)

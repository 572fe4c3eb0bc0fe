"""Timing decoding: what is counted is exact, both sides do the same work in turns, failures stay with their cell."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, LLAMA

from sparsehpc.core.machine import resident_bytes
from sparsehpc.core.spec import Calibration, Cell, Latency, Pruning, Windows
from sparsehpc.formats import kernels
from sparsehpc.formats.base import FORMATS
from sparsehpc.latency.cells import time_cells
from sparsehpc.latency.timed_model import TimedModel
from sparsehpc.results import CellResult
from sparsehpc.text.windows import TokenWindows

TIMING = Latency(prompt_tokens=9, new_tokens=4, repeats=2, threads=1)
TEXT = Windows(corpus="samples", windows=4, window_tokens=64)
PROMPTS = np.random.default_rng(1).integers(0, 512, (3, 6))
DENSE = Cell(model="m", evaluation=TEXT, latency=TIMING)
#: Weights of the tiny Llama by hand: q and o 64x64, k and v 32x64, gate, up and down 128x64, three layers; the head.
PRUNABLE = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
HEAD = 512 * 64


def timed(variant="masked", sparsity="0.5", **changes):
    pruning = Pruning(method="magnitude", pattern="unstructured", sparsity=sparsity, **changes)
    return Cell(model="m", evaluation=TEXT, variant=variant, pruning=pruning, latency=TIMING)


def run(cells, snapshot, calibrations=None):
    found = {}
    time_cells(
        cells, snapshot, calibrations or {}, PROMPTS, (0,),
        progress=lambda stage, done, total: None, finished=lambda cell, result: found.setdefault(cell.cell_id, result),
    )  # fmt: skip
    return [found[cell.cell_id] for cell in cells]


def figures(result):
    if isinstance(result, Exception):
        raise result
    return {row.metric: row.numerator / row.denominator for row in result.measurements}


def test_bytes_and_promises_are_those_of_first_principles(tiny_snapshot):
    dense, bitmap = map(figures, run([DENSE, timed("bitmap")], tiny_snapshot(LLAMA)))
    assert dense["streamed_bytes"] == dense["streamed_bytes_dense"] == 4 * (PRUNABLE + HEAD)
    assert dense["ceiling_speedup"] == dense["byte_limit_speedup"] == dense["flop_promise_speedup"] == 1
    # A bit a weight, half of the values, and one 4-byte offset a row (and a last one): qkv and gate-up are one matrix.
    rows = 3 * ((64 + 2 * 32) + 64 + 2 * 128 + 64)
    assert bitmap["pruned_bytes_dense"] == 4 * PRUNABLE
    offsets = bitmap["pruned_bytes"] - (PRUNABLE // 8 + 4 * PRUNABLE // 2)
    # Offsets and the padding that the kernels may read behind the values: less than 16 bytes a row and 256 a matrix.
    assert 0 < offsets < 16 * rows + 256 * 12
    assert bitmap["streamed_bytes"] == bitmap["pruned_bytes"] + 4 * HEAD
    assert bitmap["ceiling_speedup"] == pytest.approx(4 * (PRUNABLE + HEAD) / bitmap["streamed_bytes"])
    assert bitmap["flop_promise_speedup"] == pytest.approx((PRUNABLE + HEAD) / (PRUNABLE / 2 + HEAD))
    assert bitmap["effective_gb_per_s"] == pytest.approx(bitmap["streamed_bytes"] / bitmap["decode_s_per_token"] / 1e9)
    assert bitmap["speedup"] == pytest.approx(bitmap["decode_s_per_token_dense"] / bitmap["decode_s_per_token"])
    assert bitmap["speedup_least"] <= bitmap["speedup_most"]
    assert bitmap["logits_error"] < 1e-5


def test_rows_say_what_was_run(tiny_snapshot):
    (result,) = run([timed("bitmap")], tiny_snapshot(LLAMA))
    assert result.row["variant"] == "bitmap"
    assert result.row["threads"] == torch.get_num_threads()
    assert result.row["evaluation_digest"] == ""
    decoder = "lean" if kernels.isa() is None else "compiled"
    assert f'"decoder": "{decoder}"' in result.row["notes"]
    assert '"bitmap": 21' in result.row["notes"]
    units = {row.metric: row.unit for row in result.measurements}
    assert (units["decode_s_per_token"], units["resident_bytes"], units["speedup"]) == ("s", "bytes", "1")
    assert ("byte_limit_s_per_token" in units) == (kernels.extension() is not None)


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "llama-untied"])
def test_every_family_is_timed_on_our_dense_kernels(family, tiny_snapshot):
    dense, bitmap = run([DENSE, timed("bitmap", "0.3")], tiny_snapshot(FAMILIES[family]))
    assert ('"transformers"' not in dense.row["notes"]) == family.startswith("llama")
    if kernels.isa() is not None:
        assert dense.row["kernel"].startswith("sparsehpc::dense")
        assert "bitmap" in bitmap.row["kernel"]
    assert figures(bitmap)["logits_error"] < 1e-4


def test_sides_take_turns_and_do_the_same_work(tiny_snapshot, monkeypatch):
    order, plain = [], TimedModel.decode

    def decode(self):
        order.append(id(self))
        times = plain(self)
        assert len(times.tokens_s) == TIMING.new_tokens
        return times

    monkeypatch.setattr(TimedModel, "decode", decode)
    run([timed("bitmap")], tiny_snapshot(LLAMA))
    ours, dense = order[0], order[1]
    assert dense != ours
    # Each once while it is made ready, then two rounds.
    assert order == [ours, dense, dense, ours, dense, ours]


def test_prompts_are_repeated_to_the_length_asked_for(tiny_snapshot, monkeypatch):
    seen, plain = [], TimedModel.logits

    def logits(self):
        seen.append(self.prompt)
        return plain(self)

    monkeypatch.setattr(TimedModel, "logits", logits)
    long = dataclasses.replace(DENSE, latency=dataclasses.replace(TIMING, prompt_tokens=20))
    run([long], tiny_snapshot(LLAMA))
    assert seen == [[*PROMPTS.ravel().tolist(), *PROMPTS.ravel().tolist()][:20]]


def test_an_error_stays_with_its_cell(tiny_snapshot, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("cannot be stored")

    monkeypatch.setattr(FORMATS.get("csr"), "encode_on", broken)
    first, failed, last = run([DENSE, timed("csr"), timed("bitmap")], tiny_snapshot(LLAMA))
    assert isinstance(failed, RuntimeError)
    assert isinstance(first, CellResult)
    assert isinstance(last, CellResult)


def test_wrong_logits_are_no_result(tiny_snapshot, monkeypatch):
    bitmap = FORMATS.get("bitmap")
    plain = bitmap.encode_on
    monkeypatch.setattr(bitmap, "encode_on", lambda weight, *rest: plain(weight * 1.05, *rest))
    (failed,) = run([timed("bitmap")], tiny_snapshot(LLAMA))
    assert "differ from the masked model's" in str(failed)


def test_lossy_references_are_timed_and_say_by_how_much_they_err(tiny_snapshot):
    cell = dataclasses.replace(DENSE, variant="dense-int8")
    (result,) = run([cell], tiny_snapshot(LLAMA))
    found = figures(result)
    assert result.row["lossless"] is False
    # One byte a weight and a scale a row against four.
    assert 3 < found["byte_limit_speedup"] <= 4
    assert found["flop_promise_speedup"] == 1
    assert 1e-4 < found["logits_error"] < 0.1


def test_methods_that_learn_read_their_text(tiny_snapshot):
    draw = Calibration(corpus="python-docs", windows=2, window_tokens=16)
    text = TokenWindows(
        ids=tuple(np.random.default_rng(0).integers(0, 512, (2, 16))), text_bytes=(48, 48), every_position=True,
        starts=(0, 1), source="random tokens",
    )  # fmt: skip
    cell = dataclasses.replace(timed("bitmap"), pruning=dataclasses.replace(timed().pruning, calibration=draw))
    cell = dataclasses.replace(cell, pruning=dataclasses.replace(cell.pruning, method="wanda"))
    (result,) = run([cell], tiny_snapshot(LLAMA), {draw: text})
    assert figures(result)["flop_promise_speedup"] > 1
    assert result.row["calibration_digest"] == text.digest


def test_resident_memory_is_what_the_process_holds():
    before = resident_bytes()
    held = torch.ones(16 << 20)  # 64 MiB
    assert 60 << 20 < resident_bytes() - before < 70 << 20
    del held
    assert resident_bytes() - before < 8 << 20

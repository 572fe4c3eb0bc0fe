"""The benchmark suites of formats and kernels: known sizes, and that every row is there. No time is judged."""

from __future__ import annotations

import os

import pytest
import torch

from jobs.bench import REQUIRED, run_suite
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.formats import kernels


@pytest.fixture(autouse=True)
def keep_threads() -> object:
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


def test_sizes_of_the_embedded_model_by_format() -> None:
    rows = run_suite("formats", {"models": "smollm2-135m", "repeats": "2", "threads": "1"})
    share = {
        (row["work"], row["sparsity"]): row["share"] for row in rows if row.get("dtype") == "float32" and "share" in row
    }
    for sparsity, expected in ((0.3, 0.789), (0.5, 0.631), (0.7, 0.473), (0.9, 0.315)):
        assert share["bytes bitmap", sparsity] == pytest.approx(expected, abs=6e-4)
    assert share["bytes csr", 0.3] > 1.3
    assert {"encode bitmap", "decode auto"} <= {row["work"] for row in rows}


@pytest.mark.skipif(kernels.isa() is None, reason="the extension was not built")
def test_kernel_rows() -> None:
    options = {"layers": "1", "sparsities": "50", "tokens": "4", "repeats": "2", "threads": "1", "clock": "cpu"}
    rows = run_suite("kernels", options)
    works = {(row["work"], row["baseline"]) for row in rows}
    for work in ("gemv auto", "gemv bitmap", "gemv csr16", "gemv bfloat16 auto"):
        assert {(work, "best dense"), (work, "byte limit")} <= works
    assert {("gemv auto", "torch CSR"), ("gemv auto", "scipy CSR"), ("gemv bitmap-q4", "own dense-q4")} <= works
    assert ("spmm N=4 auto", "best dense") in works
    for row in rows:
        assert all(row[key] is not None for key in (*REQUIRED, "isa", "cpu_model", "threads", "sparsity", "params"))
        assert row["seconds_q1"] <= row["seconds"] <= row["seconds_q3"]
    assert all(row["bit_exact"] for row in rows if row["work"] == "gemv bitmap-q4")


def test_a_wrong_product_stops_the_benchmark() -> None:
    from jobs.bench._stack import check

    weight = torch.eye(8)
    with pytest.raises(SparseHPCError, match="wrong side errs"):
        check([weight], {8: torch.ones(1, 8)}, {"wrong side": lambda index, x: x * 1.001}, "float32")


@pytest.mark.parametrize(
    "options",
    [{"layres": "1"}, {"parts": "gemm"}, {"threads": "none"}, {"clock": "sun"}, {"clock": "cpu", "threads": "2"}],
)
def test_wrong_options(options: dict[str, str]) -> None:
    with pytest.raises(UserError):
        run_suite("kernels", {"threads": "1", "layers": "1", **options})


def test_markdown_joins_sparsities_and_says_the_conditions_once() -> None:
    from jobs.bench._markdown import as_markdown

    common = {"suite": "kernels", "model": "opt-125m", "threads": 2, "cpu_model": "A CPU", "baseline": "best dense"}
    times = {"seconds": 0.002, "seconds_q1": 0.002, "seconds_q3": 0.004}
    theirs = {"baseline_seconds": 0.004, "baseline_seconds_q1": 0.004, "baseline_seconds_q3": 0.006}
    rows = [
        {**common, **times, **theirs, "work": "gemv auto", "ratio": 2.0, "sparsity": s, "baseline_is": "oneDNN"}
        for s in (0.3, 0.5)
    ]
    rows[1] |= {"chosen": "72 bitmap"}
    text = as_markdown([{"finished_at_unix_s": 0, "rows": [row]} for row in rows])
    assert text.count("A CPU") == 1
    assert "**kernels, opt-125m.** cpu model A CPU; threads 2; 1970-01-01." in text
    assert "| work | against | 30 % | 50 % |" in text
    assert "| gemv auto | best dense: oneDNN | 2.00 [1.00, 3.00], 2 ms | 2.00 [1.00, 3.00], 2 ms |" in text
    assert "`gemv auto` stored at 50 % 72 bitmap." in text
    plain = {"suite": "plan", "work": "plan", "baseline": "none", "ratio": "not measured"}
    assert "| plan | none | not measured |" in as_markdown([{"finished_at_unix_s": 0, "rows": [plain]}])
    lossy = {**common, "work": "bytes dense-q4", "ratio": 4.0, "sparsity": 0.3, "lossless": False, "share": 0.25}
    assert "| bytes dense-q4 (lossy) | best dense | 0.250 of the bytes |" in as_markdown(
        [{"finished_at_unix_s": 0, "rows": [lossy]}]
    )


def test_goals_are_judged_by_what_is_printed() -> None:
    from jobs.bench._goals import goals_table

    row = {"suite": "kernels", "work": "gemv auto", "baseline": "best dense", "sparsity": 0.3, "ratio": 1.296}
    decode = {
        "suite": "decode",
        "work": "m auto",
        "baseline": "own dense",
        "sparsity": 0.9,
        "ratio": 1.71,
        "ceiling": 3.18,
    }
    lines = goals_table([row, row | {"sparsity": 0.5, "ratio": 1.7}, row | {"work": "gemv csr16"}, decode])
    assert lines[0] == "| goal of | against | 30 % | 50 % | 90 % |"
    assert lines[2] == "| gemv auto | best dense | 1.30 of 1.30 | 1.70 of 1.80: **0.10 short** |  |"
    assert lines[3] == "| m auto | own dense |  |  | 1.71 of 2.86: **1.15 short** |"
    assert len(lines) == 4
    assert goals_table([row | {"work": "gemv csr16"}, row | {"ratio": "not measured"}, row | {"sparsity": 0.4}]) == []


@pytest.mark.parametrize("options", [{"layers": "1"}, {"sparsities": "some"}])
def test_wrong_options_of_source(options: dict[str, str]) -> None:
    with pytest.raises(UserError):
        run_suite("source", {"model": "smollm2-135m", **options})

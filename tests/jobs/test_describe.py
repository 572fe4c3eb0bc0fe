"""``describe``: the structure table, and combinations that a study would leave out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Answer, write_study

Call = Callable[..., Answer]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny Llama of 2 layers, hidden 32: 18,432 prunable weights."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    return "random:model"


#: q and o 32 x 32, k and v 16 x 32, three matrices of 64 x 32; two layers.
PRUNABLE = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)


def described(cli: Call, *words: str) -> dict[str, dict[str, float]]:
    said = cli("describe", *words, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    return {convention: entries["total"] for convention, entries in found["conventions"].items()}


def test_the_old_study_opt_125m_from_its_config(cli: Call) -> None:
    said = cli("describe", "random:opt-125m")
    assert said.code == 0
    assert said.out.startswith("random:opt-125m, float32, dense, untrained: random weights\n")
    for figure in ("125,239,296", "477.75 MiB", "247.087", "327.454", "36,864 FLOPs"):
        assert figure in said.out


def test_zeros_and_bytes_of_a_pruned_model(cli: Call, model: str) -> None:
    dense, pruned = described(cli, model)["unique"], described(cli, model, "--sparsity", "0.3")["unique"]
    zeros = int(0.3 * PRUNABLE)
    assert dense["params_nonzero"] - pruned["params_nonzero"] == zeros
    assert pruned["bytes_total_values"] == pruned["bytes_total_indices"] == 4 * (PRUNABLE - zeros)
    masked = described(cli, model, "--sparsity", "0.3", "--variant", "masked")["unique"]
    assert masked["bytes_total"] == dense["bytes_total"] < pruned["bytes_total"]


@pytest.mark.parametrize("written", [[], ["--sparsity", "0.3"]])
def test_keep_two_of_four_fixes_the_sparsity(cli: Call, model: str, written: list[str]) -> None:
    said = cli("describe", model, "--pattern", "2:4", "--variant", "nm", *written)
    assert f"{model}, float32, magnitude 2:4 0.5, nm" in said.out
    assert "sparsity over the prunable weights: 50.0000 %" in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "1.2"], "'1.2' is not a number from 0 to 1"),
        (["--sparsity", "nan"], "'nan' is not a number from 0 to 1"),
        (["--sparsity", "30%"], "'30%' is not a number from 0 to 1"),
        (["--method", "magnitud"], "did you mean 'magnitude'"),
        (["--variant", "crs"], "did you mean 'csr'"),
        (["--pattern", "2;4"], "did you mean '2:4'"),
        (["--dtype", "float31"], "did you mean 'float32'"),
        (["--method", "random"], "--method says how weights are pruned, but not how many"),
        (["--variant", "masked"], "add --sparsity"),
        (["--method", "wanda", "--sparsity", "0.3"], "'wanda' needs calibration text"),
        (["--method", "magnitude-rowwise", "--pattern", "2:4"], "cannot make pattern '2:4'"),
        (["--variant", "nm", "--sparsity", "0.3"], "'nm' cannot store"),
        (["--variant", "dense-int8", "--sparsity", "0.3"], "stores the dense model"),
        (["--pattern", "block16x16", "--sparsity", "0.5", "--variant", "nm"], "'nm' cannot store"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_clear_error(cli: Call, model: str, words: list[str], message: str) -> None:
    said = cli("describe", model, *words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert message in said.err

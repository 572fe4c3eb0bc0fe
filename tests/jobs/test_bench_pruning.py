"""Every method has its row of phases, measured on what it really does."""

from __future__ import annotations

import json

import pytest
from tiny_models import LLAMA

from jobs.bench import _pruning_model
from sparsehpc.pruning.base import METHODS

CONFIG = LLAMA | {"max_position_embeddings": 256}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEHPC_HOME", str(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return _pruning_model.rows(f"random:{tmp_path / 'model'}", repeats=2)


def test_every_method_that_fits_has_a_row_of_phases(rows):
    works = [row["work"].removeprefix(rows[0]["work"].split(" ")[0] + " ") for row in rows]
    companions = ["wanda (refit) 50 %", "wanda (true_sequential) 50 %", "wanda (allocation owl) 50 %"]
    assert works == [f"{name} 50 %" for name, _ in METHODS] + companions
    for row in rows:
        assert row["repeats"] == 2
        assert row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        calibrated = row["params"]["calibration_windows"] > 0
        assert (row["calibrate_s"] > 0) == calibrated
        assert 0 <= row["calibrate_s"] <= row["seconds_high"]
        assert row["evaluate_s"] > 0
        if row["params"]["pattern"] == "unstructured":
            assert row["params"]["sparsity_prunable"] == pytest.approx(0.5, abs=0.02)  # rounding of rows of 64

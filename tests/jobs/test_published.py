"""Verdicts on published figures, on a stand-in for the run that needs a hub."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from jobs.published import AGREES, DIFFERS, NOT_PUBLISHED, PUBLISHED, check_protocol, verdicts
from sparsehpc.core.errors import UserError


def row(method: str, perplexity: float, **changes: object) -> dict[str, object]:
    dense = method == "none"
    return {
        "model": "facebook/opt-125m",
        "method": method,
        "pattern": "none" if dense else "unstructured",
        "sparsity_target": 0.0 if dense else 0.5,
        "variant": "dense" if dense else "masked",
        "perplexity": perplexity,
        "allocation": "default",
        "options": "{}",
        "targets": "attention+mlp",
        "refit": False,
        "true_sequential": None,
        **changes,
    }


def test_verdicts_by_distance_from_the_printed_value() -> None:
    found = verdicts(
        [
            row("none", 27.60),
            row("magnitude-layerwise", 300.0),
            row("sparsegpt", 38.0),
            row("sparsegpt", float("nan")),
            row("wanda", 38.9),
            row("sparsegpt", 99.0, variant="csr"),
            row("sparsegpt", 30.0, sparsity_target=0.3),
        ]
    )
    assert [item.verdict for item in found] == [AGREES, DIFFERS, AGREES, DIFFERS, NOT_PUBLISHED, NOT_PUBLISHED]
    assert found[0].published is not None
    assert found[0].published.perplexity == 27.66


@pytest.mark.parametrize(
    "changes",
    [
        {"refit": True},
        {"true_sequential": True},
        {"allocation": "owl"},
        {"targets": "attention"},
        {"options": '{"damping": 0.1}'},
    ],
)
def test_a_variation_of_a_method_is_not_the_published_one(changes: dict[str, object]) -> None:
    (found,) = verdicts([row("sparsegpt", 36.85, **changes)])
    assert found.verdict == NOT_PUBLISHED


DENSE = {
    "model": "facebook/opt-125m",
    "evaluation_corpus": "wikitext2",
    "evaluation_window_tokens": 2048,
    "evaluation_windows": 140,
    "calibration_corpus": None,
    "calibration_windows": None,
    "calibration_window_tokens": None,
}
CALIBRATED = DENSE | {"calibration_corpus": "c4", "calibration_windows": 128, "calibration_window_tokens": 2048}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation_corpus": "samples"}, "evaluation_corpus = 'wikitext2'; this run has samples"),
        ({"evaluation_window_tokens": 512}, "evaluation_window_tokens = 2048; this run has 512"),
        ({"evaluation_windows": 2}, "evaluation_windows = 140; this run has 2"),
        ({"calibration_corpus": "python-docs"}, "calibration_corpus = 'c4'; this run has python-docs"),
        ({"calibration_windows": 4}, "calibration_windows = 128; this run has 4"),
        ({"calibration_window_tokens": 256}, "calibration_window_tokens = 2048; this run has 256"),
    ],
)
def test_another_protocol_is_refused_with_what_it_was(changes: dict[str, object], said: str) -> None:
    check_protocol([DENSE, CALIBRATED])
    with pytest.raises(UserError, match=said):
        check_protocol([DENSE, CALIBRATED, CALIBRATED | changes])


def test_every_departure_is_said_at_once_and_other_models_do_not_matter() -> None:
    other = DENSE | {"model": "EleutherAI/pythia-410m", "evaluation_windows": 163}
    check_protocol([other, DENSE])
    with pytest.raises(UserError, match="not comparable: 2 problems"):
        check_protocol([CALIBRATED | {"evaluation_windows": 2, "calibration_windows": 4}])
    with pytest.raises(UserError, match=r"no model with a published figure, but EleutherAI/pythia-410m"):
        check_protocol([other])


def test_the_shipped_study_follows_the_protocol() -> None:
    study = tomllib.loads((Path(jobs.__file__).parent / "studies" / "published.toml").read_text(encoding="utf-8"))
    evaluation, calibration = study["evaluation"], study["calibration"]
    shipped = {
        "model": study["models"][0]["id"],
        **{f"evaluation_{key}": evaluation[key] for key in ("corpus", "windows", "window_tokens")},
        **{f"calibration_{key}": calibration[key] for key in ("corpus", "windows", "window_tokens")},
    }
    check_protocol([shipped])


def stand_in(run: Path, perplexities: dict[str, float]) -> None:
    """Let a finished run of an untrained model look like one of the published protocol, with these perplexities."""
    for path in (run / "plan.parquet", run / "tables" / "global.parquet"):
        rows = pq.read_table(path)
        methods = ["magnitude-layerwise" if name == "magnitude" else name for name in rows["method"].to_pylist()]
        columns = DENSE | {"method": methods, "perplexity": [perplexities[name] for name in methods]}
        for name in set(columns) & set(rows.column_names):
            value = columns[name] if isinstance(columns[name], list) else [columns[name]] * rows.num_rows
            field = rows.schema.field(name)
            rows = rows.set_column(rows.column_names.index(name), field, pa.array(value, field.type))
        pq.write_table(rows, path)


def test_validate_prints_verdicts_and_ends_with_0_where_all_agree(run_copy: Path, cli: Callable[..., Any]) -> None:
    stand_in(run_copy, {"none": 27.9, "magnitude-layerwise": 190.0})
    answer = cli("validate", run_copy)
    assert "Other than the papers: float32 weights" in answer.out
    assert answer.code == 0, answer.err
    lines = [line.split() for line in answer.out.partition("\n\n")[0].splitlines()]
    assert lines[0] == ["cell", "perplexity", "published", "tolerance", "verdict", "source"]
    # One row each: the pruned weights were stored in two formats, of which one is compared.
    assert [line[:8] for line in lines[1:]] == [
        ["facebook/opt-125m", "none", "none", "0", "27.90", "27.66", "3%", "agrees"],
        ["facebook/opt-125m", "magnitude-layerwise", "unstructured", "0.5", "190.00", "193.00", "3%", "agrees"],
    ]
    assert "arXiv:2301.00774" in answer.out


def test_validate_ends_with_1_where_a_figure_differs(run_copy: Path, cli: Callable[..., Any]) -> None:
    stand_in(run_copy, {"none": 27.66, "magnitude-layerwise": 60.0})
    answer = cli("validate", run_copy, "--json")
    assert answer.code == 1
    dense, pruned = json.loads(answer.out)
    assert (dense["verdict"], pruned["verdict"]) == (AGREES, DIFFERS)
    assert (pruned["perplexity"], pruned["published"]["perplexity"]) == (60.0, 193.0)


def test_validate_of_any_other_run_says_why_not(run_copy: Path, cli: Callable[..., Any]) -> None:
    answer = cli("validate", run_copy)
    assert answer.code != 0
    assert "no model with a published figure" in answer.err
    assert "sparsehpc run published" in answer.err
    assert "Traceback" not in answer.err


def test_every_figure_is_of_a_method_and_pattern_that_exist() -> None:
    from sparsehpc.pruning.base import METHODS

    for figure in PUBLISHED:
        if figure.method != "none":
            assert figure.pattern in METHODS.get(figure.method).patterns
        assert 0 < figure.tolerance < 0.1 < figure.perplexity
        # The number of evaluation windows is that of the text in OPT's tokens.
        assert figure.model.startswith("facebook/opt")

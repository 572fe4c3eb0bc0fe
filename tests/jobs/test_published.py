"""Verdicts on published figures, on a stand-in for the run that needs a hub."""

from __future__ import annotations

import pytest

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


def test_another_protocol_is_refused_with_what_it_was() -> None:
    good = {"evaluation_corpus": "wikitext2", "evaluation_window_tokens": 2048}
    check_protocol([good, good])
    with pytest.raises(UserError, match="this run has samples"):
        check_protocol([{**good, "evaluation_corpus": "samples"}])
    with pytest.raises(UserError, match=r"2048; this run has 2048, 512"):
        check_protocol([good, {**good, "evaluation_window_tokens": 512}])


def test_every_figure_is_of_a_method_and_pattern_that_exist() -> None:
    from sparsehpc.pruning.base import METHODS

    for figure in PUBLISHED:
        if figure.method != "none":
            assert figure.pattern in METHODS.get(figure.method).patterns
        assert 0 < figure.tolerance < 0.1 < figure.perplexity

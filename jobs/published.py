"""Published perplexities, and a verdict on how a run's own compare with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.spec import NO_METHOD, NO_PATTERN


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """One perplexity from a paper, on WikiText-2 in windows of 2048 tokens.

    Parameters
    ----------
    model
        Hub id.
    method, pattern, sparsity
        As in the summary tables; the dense model has the method ``none``.
    perplexity
        The printed value.
    tolerance
        Relative distance that still agrees.
    source
        Where it is printed.
    """

    model: str
    method: str
    pattern: str
    sparsity: Decimal
    perplexity: float
    tolerance: float
    source: str


_SPARSEGPT: Final = "Frantar and Alistarh, SparseGPT (arXiv:2301.00774)"
_UNSTRUCTURED: Final = "unstructured"

#: What is not theirs, said with every verdict.
DIFFERENCES: Final = (
    "Other than the papers: float32 weights (float16), a BOS token in every window (in the first), calibration on "
    "contiguous pieces of joined C4 documents (random places in long ones). Tolerances allow 3 % for that, and 6 % "
    "where calibration windows move the figure; they are our judgement, not measured."
)

#: Tolerances: see `DIFFERENCES`.
PUBLISHED: Final = (
    Published("facebook/opt-125m", NO_METHOD, NO_PATTERN, Decimal(0), 27.66, 0.03, _SPARSEGPT),
    Published("facebook/opt-125m", "magnitude-layerwise", _UNSTRUCTURED, Decimal("0.5"), 193.0, 0.03, _SPARSEGPT),
    Published("facebook/opt-125m", "sparsegpt", _UNSTRUCTURED, Decimal("0.5"), 36.85, 0.06, _SPARSEGPT),
    Published("facebook/opt-350m", NO_METHOD, NO_PATTERN, Decimal(0), 22.00, 0.03, _SPARSEGPT),
    Published("facebook/opt-350m", "magnitude-layerwise", _UNSTRUCTURED, Decimal("0.5"), 97.80, 0.03, _SPARSEGPT),
    Published("facebook/opt-350m", "sparsegpt", _UNSTRUCTURED, Decimal("0.5"), 31.58, 0.06, _SPARSEGPT),
    Published("facebook/opt-1.3b", NO_METHOD, NO_PATTERN, Decimal(0), 14.62, 0.03, _SPARSEGPT),
    Published("facebook/opt-1.3b", "sparsegpt", _UNSTRUCTURED, Decimal("0.5"), 17.46, 0.06, _SPARSEGPT),
)

#: Evaluation that the figures were measured with: the whole test text, which makes 140 windows in OPT's tokens.
PROTOCOL: Final = {"evaluation_corpus": "wikitext2", "evaluation_window_tokens": 2048, "evaluation_windows": 140}
#: What the calibrated methods among them learned from.
CALIBRATION: Final = {"calibration_corpus": "c4", "calibration_windows": 128, "calibration_window_tokens": 2048}
#: The papers prune all linears of the decoder layers, once, by the method as it is.
PLAIN: Final = {
    "allocation": "default",
    "options": "{}",
    "targets": "attention+mlp",
    "refit": False,
    "true_sequential": None,
}

_HINT: Final = "sparsehpc run published follows the papers' protocol"

AGREES: Final = "agrees"
DIFFERS: Final = "differs"
NOT_PUBLISHED: Final = "no published figure"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One row of a run beside its published figure.

    Parameters
    ----------
    label
        Model, method, pattern and sparsity in words.
    perplexity
        The run's own.
    published
        The figure, or None where there is none.
    verdict
        ``agrees``, ``differs`` or ``no published figure``.
    """

    label: str
    perplexity: float
    published: Published | None
    verdict: str


def check_protocol(plan: Sequence[Mapping[str, Any]]) -> None:
    """Raise `UserErrors` if cells of models with published figures were measured in another way than the figures were.

    Parameters
    ----------
    plan
        Rows of a run's plan.
    """
    models = {figure.model for figure in PUBLISHED}
    rows = [row for row in plan if row["model"] in models]
    if not rows:
        found = ", ".join(sorted({str(row["model"]) for row in plan})) or "no cells"
        raise UserError(
            f"this run has no model with a published figure, but {found}; legal: {', '.join(sorted(models))}", _HINT
        )
    calibrated = [row for row in rows if row["calibration_corpus"] is not None]
    problems = []
    for protocol, checked in ((PROTOCOL, rows), (CALIBRATION, calibrated)):
        for key, wanted in protocol.items():
            other = sorted({str(row[key]) for row in checked} - {str(wanted)})
            if other:
                problems.append(f"published figures stand for {key} = {wanted!r}; this run has {', '.join(other)}")
    if problems:
        raise UserErrors("this run is not comparable", problems, _HINT)


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Compare rows of the global table (one convention) with the published figures.

    Of several storage formats of the same pruned weights only ``masked`` is compared; of several calibration seeds
    each is. A refit, another allocation, other targets or options are other methods than the published ones.
    """
    found = []
    for row in rows:
        if row["variant"] not in ("dense", "masked"):
            continue
        sparsity = Decimal(str(row["sparsity_target"]))
        match = next(
            (
                p
                for p in PUBLISHED
                if (p.model, p.method, p.pattern) == (row["model"], row["method"], row["pattern"])
                and p.sparsity == sparsity
                and all(row[key] == wanted for key, wanted in PLAIN.items())
            ),
            None,
        )
        own = float(row["perplexity"])
        verdict = NOT_PUBLISHED
        if match is not None:
            near = math.isfinite(own) and abs(own / match.perplexity - 1) <= match.tolerance
            verdict = AGREES if near else DIFFERS
        label = f"{row['model']} {row['method']} {row['pattern']} {float(sparsity):g}"
        found.append(Verdict(label, own, match, verdict))
    return found

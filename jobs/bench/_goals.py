"""What kernels and decoder are meant to reach at 30, 50, 70 and 90 % zeros: ratios of baseline time to ours."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.bench import Row

_AT = (0.3, 0.5, 0.7, 0.9)
#: Of the ratio of bytes that the dense head allows, where the baseline is the same decoder on dense weights.
_OF_CEILING = 0.9
#: By what is measured and against what; of decoding by the second alone.
_GOALS = {
    ("gemv auto", "best dense"): (1.3, 1.8, 2.3, 4.5),
    ("gemv auto", "byte limit"): (0.9, 0.9, 0.75, 0.6),
    ("gemv auto", "torch CSR"): (4.0, 4.0, 3.0, 1.7),
    ("gemv auto", "scipy CSR"): (4.0, 4.0, 3.0, 1.7),
    ("gemv bfloat16 auto", "best dense"): (1.15, 1.6, 2.0, 3.0),
    ("gemv bitmap-q4", "own dense-q4"): (1.0, 1.15, 1.4, 2.0),
    ("spmm N=4 auto", "best dense"): (0.95, 0.95, 1.2, 0.95),
    ("spmm N=16 auto", "best dense"): (0.95, 0.95, 1.2, 0.95),
    ("spmm N=64 auto", "best dense"): (0.95, 0.95, 0.95, 0.95),
    ("spmm N=256 auto", "best dense"): (0.95, 0.95, 0.95, 0.95),
    ("decode", "transformers"): (1.5, 1.8, 2.2, 2.8),
    ("decode", "transformers compiled"): (1.1, 1.35, 1.8, 2.4),
}


def goal(row: Row) -> float | None:
    """Least ratio that a row is meant to have, or None where nothing was aimed at."""
    if row.get("sparsity") not in _AT or not isinstance(row["ratio"], float | int):
        return None
    decoding = row["suite"] == "decode" and row["work"].endswith(" auto")
    if decoding and row["baseline"] == "own dense":
        return _OF_CEILING * float(row["ceiling"])
    goals = _GOALS.get(("decode" if decoding else row["work"], row["baseline"]))
    return None if goals is None else goals[_AT.index(row["sparsity"])]


def goals_table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: what was reached of each goal, by how much it was missed; none where there are no goals."""
    aimed = [(row, least) for row in rows if (least := goal(row)) is not None]
    if not aimed:
        return []
    sparsities = sorted({row["sparsity"] for row, _ in aimed})
    lines = ["| goal of | against | " + " | ".join(f"{100 * s:.0f} %" for s in sparsities) + " |"]
    lines.append("|---|---|" + "---|" * len(sparsities))
    for work, baseline in dict.fromkeys((row["work"], row["baseline"]) for row, _ in aimed):
        cells = {r["sparsity"]: _cell(r, least) for r, least in aimed if (r["work"], r["baseline"]) == (work, baseline)}
        lines.append(f"| {work} | {baseline} | {' | '.join(cells.get(s, '') for s in sparsities)} |")
    return lines


def _cell(row: Row, least: float) -> str:
    """Judged by the figures as they are printed."""
    reached, asked = round(row["ratio"], 2), round(least, 2)
    said = f"{reached:.2f} of {asked:.2f}"
    return said if reached >= asked else f"{said}: **{asked - reached:.2f} short**"

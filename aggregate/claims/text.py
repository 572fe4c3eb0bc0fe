"""Rulings as text: a line a claim on a terminal, a page in Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from aggregate.claims.file import Check
from aggregate.claims.verdict import DEPENDS, FALSE, NOT_MEASURED, TRUE, Evidence, Finding, Ruling
from aggregate.export import markdown
from aggregate.figures.style import number

#: Rows of evidence that a page shows of one check; the JSON holds all.
_MOST = 12

#: Cell ids that a line on a terminal names.
_MOST_CELLS = 3

_ORDER = (TRUE, FALSE, DEPENDS, NOT_MEASURED)


def as_lines(rulings: Sequence[Ruling]) -> str:
    """A few lines a claim: verdict, figure with interval, and some of the cells; the JSON has them all."""
    lines = []
    for ruling in rulings:
        lines.append(f"{ruling.verdict:<13} {ruling.claim.id}: {ruling.claim.says}")
        lines += [f"{'':<13}   {found.check.what}: {_summary(found)}{_cells(found)}" for found in ruling.findings]
    lines.append(count(rulings))
    return "\n".join(lines)


def _cells(found: Finding) -> str:
    ids = list(dict.fromkeys(each.cell_id for each in found.evidence if each.cell_id))
    more = f" and {len(ids) - _MOST_CELLS} more" if len(ids) > _MOST_CELLS else ""
    return f"  {' '.join(ids[:_MOST_CELLS])}{more}" if ids else ""


def as_markdown(rulings: Sequence[Ruling]) -> str:
    """Table of all claims, then a section each with the evidence."""
    sections = [part for ruling in rulings for part in _section(ruling)]
    return "\n".join([f"{count(rulings)}.", "", as_table(rulings, linked=True), "", *sections]).rstrip() + "\n"


def as_table(rulings: Sequence[Ruling], *, linked: bool = False) -> str:
    """A line a claim, which leads to its section where ``linked``."""
    rows = []
    for ruling in rulings:
        says = markdown(ruling.claim.says)
        name = f"[{says}](#claim-{ruling.claim.id})" if linked else says
        figures = "; ".join(f"{markdown(found.check.what)}: {_summary(found)}" for found in ruling.findings)
        rows.append(f"| {name} | **{ruling.verdict}** | {figures} |")
    return "\n".join(["| claim | verdict | figures |", "|---|---|---|", *rows])


def _section(ruling: Ruling) -> Iterator[str]:
    claim = ruling.claim
    yield f"(claim-{claim.id})="
    yield f"## {claim.says.rstrip('.')}"
    yield ""
    yield f"**{ruling.verdict.capitalize()}.** {claim.because}"
    yield ""
    yield f"*Where it stood:* {claim.stood}"
    for found in ruling.findings:
        yield ""
        what = found.check.what[:1].upper() + found.check.what[1:]
        yield f"{what}; the claim {_rule(found.check)}: **{found.verdict}**."
        if found.evidence:
            yield ""
            yield "| cell | figure | the claim | cell id |"
            yield "|---|---|---|---|"
            for each in found.evidence[:_MOST]:
                outcome = each.outcome + (f": {each.note}" if each.note else "")
                ids = " - ".join(f"`{cell}`" for cell in (each.cell_id, each.against) if cell)
                yield f"| {markdown(each.what)} | {_figure(found.check, each)} | {outcome} | {ids} |"
            if len(found.evidence) > _MOST:
                rest = Counter(each.outcome for each in found.evidence[_MOST:])
                yield ""
                yield f"And {rest.total()} more: {', '.join(f'{n} {outcome}' for outcome, n in rest.items())}."
    yield ""


def _summary(found: Finding) -> str:
    """The figures of a check in a few words."""
    evidence = found.evidence
    if not evidence:
        return "not measured"
    if len(evidence) == 1:
        return _figure(found.check, evidence[0])
    values = [each.value for each in evidence]
    low, high = _value(found.check, min(values)), _value(found.check, max(values))
    span = low if low == high else f"{low} to {high}"
    if found.check.holds.refuted:
        return f"{span} in {len(evidence)} cells"
    holding = sum(each.outcome == "holds" for each in evidence)
    return f"{span}; holds in {holding} of {len(evidence)}"


def _figure(check: Check, each: Evidence) -> str:
    text = _value(check, each.value)
    if math.isnan(each.lo) or math.isnan(each.hi):
        return text
    bounds = ", ".join(_value(check, bound).removesuffix(" %") for bound in (each.lo, each.hi))
    return f"{text} [{bounds}]"


def _value(check: Check, value: float) -> str:
    if check.shown == "percent":
        return f"{number(100 * value, 3)} %"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else number(value, 3)


def _rule(check: Check) -> str:
    written = check.holds.written(100.0, " %") if check.shown == "percent" else check.holds.words
    return f"is refuted by a figure that {written}" if check.holds.refuted else f"holds where it {written}"


def count(rulings: Sequence[Ruling]) -> str:
    """How many claims are true, false, ..."""
    found = Counter(ruling.verdict for ruling in rulings)
    return f"{len(rulings)} claims: " + ", ".join(f"{found[name]} {name}" for name in _ORDER if found[name])

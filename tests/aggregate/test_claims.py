"""Claims are judged by hand-made tables whose verdicts are known; a claims file is data and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from aggregate.api import aggregate_run
from aggregate.claims import judge, judge_runs, load_tables, read_claims
from aggregate.claims.file import Rule
from aggregate.claims.text import as_lines, as_markdown
from aggregate.claims.verdict import DEPENDS, FAILS, FALSE, HOLDS, NOT_MEASURED, OPEN, TRUE, _outcome
from sparsehpc.core.errors import UserErrors

HEAD = '[[claim]]\nid = "one"\nsays = "A claim."\nstood = "a slide"\nbecause = "A reason."\n'


def row(cell: str, **changed: Any) -> dict[str, Any]:
    """A row of ``global``; 20 windows, Wanda at 30 % unless something else is said."""
    return {
        "model": "m",
        "revision": None,
        "dtype": "float32",
        "device": "cpu",
        "method": "wanda",
        "pattern": "unstructured",
        "sparsity_target": 0.3,
        "allocation": "default",
        "targets": "attention+mlp",
        "refit": False,
        "true_sequential": None,
        "options": "{}",
        "variant": "masked",
        "calibration_seed": math.nan,
        "evaluation_corpus": "samples",
        "evaluation_windows": 20,
        "evaluation_window_tokens": 64,
        "convention": "unique",
        "trained": True,
        "interval_units": 20,
        "bytes_ratio": 1.0,
        "perplexity": 10.0,
        "perplexity_lo": math.nan,
        "perplexity_hi": math.nan,
        "top1_agreement": 0.6,
        "top1_agreement_lo": 0.58,
        "top1_agreement_hi": 0.62,
        "flops_executed": 70.0,
        "flops_dense": 100.0,
        "cell_id": cell,
        **changed,
    }


def rulings(tmp_path: Path, checks: str, rows: list[dict[str, Any]], windows: pd.DataFrame | None = None) -> list[Any]:
    path = tmp_path / "claims.toml"
    path.write_text(HEAD + checks)
    tables = {name: pd.DataFrame() for name in ("groups", "seeds", "tipping")} | {"global": pd.DataFrame(rows)}
    return judge(read_claims(path), tables if windows is None else tables | {"windows": windows})


def check(value: str, rule: str, where: str = 'variant = "masked"', more: str = "") -> str:
    return (
        f'[[claim.check]]\nwhat = "a figure"\nwhere = {{ {where} }}\nvalue = "{value}"\nholds = {{ {rule} }}\n{more}\n'
    )


# --- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "figure", "outcome"),
    [
        ({"above": 0.5}, (0.6, 0.55, 0.65), HOLDS),
        ({"above": 0.5}, (0.6, 0.5, 0.65), OPEN),  # the bound itself is not above
        ({"above": 0.5}, (0.5, math.nan, math.nan), FAILS),
        ({"above": 0.5}, (0.4, 0.3, 0.5), FAILS),
        ({"below": 1.0}, (1.0, math.nan, math.nan), FAILS),
        ({"below": 1.0}, (0.9, 0.8, 1.1), OPEN),
        ({"below": 1.0}, (0.9, 0.8, 0.99), HOLDS),
        ({"between": [1, 2]}, (1.5, 1.0, 2.0), HOLDS),
        ({"between": [1, 2]}, (1.5, 0.9, 1.9), OPEN),
        ({"between": [1, 2]}, (2.5, 2.1, 3.0), FAILS),
        ({"equals": 0}, (0.0, math.nan, math.nan), HOLDS),
        ({"equals": 0}, (1e-9, math.nan, math.nan), FAILS),
        ({"equals": 0.35, "within": 0.005}, (0.3459, math.nan, math.nan), HOLDS),
        ({"equals": 0.35, "within": 0.005}, (0.3449, math.nan, math.nan), FAILS),
    ],
)
def test_a_figure_obeys_with_its_whole_interval(rule, figure, outcome):
    assert _outcome(Rule(**rule), *figure) == outcome


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "verdict"), [([0.8, 0.9], TRUE), ([1.2, 1.3], FALSE), ([0.8, 1.2], DEPENDS), ([], NOT_MEASURED)]
)
def test_all_figures_must_agree(tmp_path, ratios, verdict):
    rows = [row(f"c{n}", bytes_ratio=ratio) for n, ratio in enumerate(ratios)] + [row("x", variant="csr")]
    (ruling,) = rulings(tmp_path, check("bytes_ratio", "below = 1.0"), rows)
    assert ruling.verdict == verdict
    assert [each.value for each in ruling.findings[0].evidence] == ratios


def test_all_checks_must_agree(tmp_path):
    both = check("bytes_ratio", "below = 1.0") + check("top1_agreement", "above = 0.9")
    (ruling,) = rulings(tmp_path, both, [row("a", bytes_ratio=0.5)])
    assert [found.verdict for found in ruling.findings] == [TRUE, FALSE]
    assert ruling.verdict == DEPENDS
    measured = check("bytes_ratio", "below = 1.0") + check("bytes_ratio", "below = 1.0", 'variant = "csr"')
    (ruling,) = rulings(tmp_path, measured, [row("a", bytes_ratio=0.5)])
    assert [found.verdict for found in ruling.findings] == [TRUE, NOT_MEASURED]
    assert ruling.verdict == NOT_MEASURED
    (ruling,) = rulings(tmp_path, measured, [row("a", bytes_ratio=1.5)])
    assert [found.verdict for found in ruling.findings] == [FALSE, NOT_MEASURED]
    assert ruling.verdict == FALSE


def test_the_interval_decides_and_too_few_windows_do_not(tmp_path):
    rule = check("top1_agreement", "between = [0.57, 0.63]")
    assert rulings(tmp_path, rule, [row("a")])[0].verdict == TRUE
    (wide,) = rulings(tmp_path, rule, [row("a", top1_agreement_lo=0.5)])
    assert (wide.verdict, wide.findings[0].evidence[0].outcome) == (DEPENDS, OPEN)
    few = {"interval_units": 8, "top1_agreement_lo": math.nan, "top1_agreement_hi": math.nan}
    (short,) = rulings(tmp_path, rule, [row("a", **few)])
    assert short.findings[0].evidence[0].note == "8 windows are too few for an interval"
    assert short.verdict == DEPENDS


def test_any_figure_refutes_an_impossibility_and_none_proves_it(tmp_path):
    rule = check("perplexity", "refuted = true", 'method = "none"')
    assert rulings(tmp_path, rule, [row("a", method="none")])[0].verdict == FALSE
    assert rulings(tmp_path, rule, [row("a")])[0].verdict == NOT_MEASURED
    # With a bound beside it, only figures on that side say anything.
    bounded = check("bytes_ratio", "refuted = true, below = 1.0")
    assert rulings(tmp_path, bounded, [row("a", bytes_ratio=1.5)])[0].verdict == NOT_MEASURED
    (ruling,) = rulings(tmp_path, bounded, [row("a", bytes_ratio=1.5), row("b", bytes_ratio=0.4)])
    assert (ruling.verdict, [each.cell_id for each in ruling.findings[0].evidence]) == (FALSE, ["b"])


def test_ratio_of_two_columns(tmp_path):
    (ruling,) = rulings(tmp_path, check("flops_executed", "equals = 0.7", more='over = "flops_dense"'), [row("a")])
    assert ruling.verdict == TRUE


def test_conditions(tmp_path):
    rows = [row("a", sparsity_target=0.3), row("b", sparsity_target=0.5), row("c", sparsity_target=0.7, trained=False)]

    def kept(where: str) -> list[str]:
        (ruling,) = rulings(tmp_path, check("bytes_ratio", "equals = 1", where), rows)
        return [each.cell_id for each in ruling.findings[0].evidence]

    assert kept("sparsity_target = [0.3, 0.7]") == ["a", "c"]
    assert kept("sparsity_target = { least = 0.5 }") == ["b", "c"]
    assert kept("sparsity_target = { least = 0.4, most = 0.6 }") == ["b"]
    assert kept("sparsity_target = { is_not = 0.3 }, trained = true") == ["b"]
    assert kept("trained = 1") == []  # a flag is a flag, not a number


# --- comparisons ----------------------------------------------------------------------------------------------------


def windows_of(means: dict[str, float]) -> pd.DataFrame:
    """Nats per window of each cell: hard and easy windows, the same ones for all, and a little of its own."""
    hard = np.random.default_rng(0).gamma(4, 0.5, 20)
    frames = []
    for n, (cell, mean) in enumerate(means.items()):
        own = 0.01 * np.random.default_rng(n).standard_normal(20)
        tops = 64 * (hard + mean + own)
        frames.append(
            pd.DataFrame(
                {
                    "cell_id": cell,
                    "window": range(20),
                    "perplexity_numerator": tops,
                    "perplexity_denominator": 64.0,
                }
            )
        )
    return pd.concat(frames)


AGAINST = check("perplexity", "below = 0.0", 'method = "wanda"', 'against = { method = "magnitude" }')


def test_difference_is_paired_over_windows(tmp_path):
    rows = [row("w"), row("g", method="magnitude")]
    (ruling,) = rulings(tmp_path, AGAINST, rows, windows_of({"w": 0.0, "g": 0.1}))
    (found,) = ruling.findings[0].evidence
    assert ruling.verdict == TRUE
    assert (found.cell_id, found.against) == ("w", "g")
    # The windows differ by far more than the methods; only pairing sees a tenth of a nat.
    assert found.value == pytest.approx(-0.1, abs=0.01)
    assert -0.12 < found.lo < found.value < found.hi < -0.08
    (other,) = rulings(tmp_path, AGAINST, rows, windows_of({"w": 0.0, "g": -0.1}))
    assert other.verdict == FALSE
    (same,) = rulings(tmp_path, AGAINST, rows, windows_of({"w": 0.0, "g": 0.0}))
    assert same.verdict == DEPENDS


def test_cells_are_compared_where_nothing_else_differs(tmp_path):
    magnitude = row("g", method="magnitude")
    for other in ({"sparsity_target": 0.5}, {"evaluation_windows": 21}, {"refit": True}, {"model": "n"}):
        (ruling,) = rulings(tmp_path, AGAINST, [row("w"), {**magnitude, **other}], windows_of({"w": 0, "g": 1}))
        assert ruling.verdict == NOT_MEASURED, other
    # How a method learned is its own affair.
    (ruling,) = rulings(tmp_path, AGAINST, [row("w", calibration_seed=0), magnitude], windows_of({"w": 0, "g": 1}))
    assert ruling.verdict == TRUE


def test_two_cells_to_compare_with_are_an_error(tmp_path):
    other = row("h", method="magnitude", options='{"tie_rule": "threshold"}', perplexity=11.0)
    rows = [row("w"), row("g", method="magnitude"), other]
    with pytest.raises(UserErrors, match="2 cells to compare with"):
        rulings(tmp_path, AGAINST, rows)


def test_counts_of_groups_are_compared_with_any_equal_dense_model(tmp_path):
    path = tmp_path / "claims.toml"
    against = 'table = "groups"\nagainst = { method = "none", sparsity_target = 0.0 }'
    path.write_text(HEAD + check("sparsity", "equals = 0.0", 'group = "embedding", method = "wanda"', against))
    keys = {"model": "m", "dtype": "float32", "convention": "unique", "group": "embedding", "variant": "masked"}
    own = {**keys, "method": "none", "pattern": "none", "sparsity_target": 0.0, "sparsity": 0.01}
    groups = [{**own, "cell_id": "d1"}, {**own, "cell_id": "d2"}]
    groups.append({**own, "cell_id": "w", "method": "wanda", "sparsity_target": 0.3})
    groups.append({**groups[-1], "cell_id": "v", "group": "mlp", "sparsity": 0.3})
    (ruling,) = judge(read_claims(path), {"groups": pd.DataFrame(groups)})
    assert ruling.verdict == TRUE
    assert [(each.cell_id, each.against) for each in ruling.findings[0].evidence] == [("w", "d1")]


def test_another_model_has_its_own_revision(tmp_path):
    rule = check("bytes_ratio", "below = 0", 'model = "big"', 'against = { model = "small" }')
    rows = [
        row("b", model="big", revision="1", bytes_ratio=0.5),
        row("s", model="small", revision="2", bytes_ratio=0.9),
    ]
    (ruling,) = rulings(tmp_path, rule, rows)
    assert ruling.verdict == TRUE
    assert ruling.findings[0].evidence[0].value == pytest.approx(-0.4)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_every_problem_of_a_file_at_once(tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(
        HEAD
        + check("bytes_ratio", "below = 1, above = 2")
        + check("bytes_ratio", "blow = 1")
        + HEAD.replace('"one"', '"two"')
        + check("bytes_ratio", "between = [2, 1]", more='table = "globl"\nshown = "furlongs"')
        + check("bytes_ratio", "equals = nan")
        + '[[claim]]\nid = "Not an id"\nsays = "x"\n'
        + "[[clam]]\n"
    )
    with pytest.raises(UserErrors) as error:
        read_claims(path)
    text = str(error.value)
    for part in (
        "unknown table or key 'clam'; did you mean 'claim'?",
        "claim 'one': check.1.holds.blow: unknown key",
        "claim 'Not an id': id: String should match pattern",
        "claim 'Not an id': stood: Field required",
        "claim 'Not an id': check: Field required",
        "claim 'two': check.1.holds.equals: Input should be a finite number",
    ):
        assert part in text, part
    path.write_text(
        HEAD + check("bytes_ratio", "below = 1, above = 2") + HEAD + check("bytes_ratio", "between = [2, 1]")
    )
    with pytest.raises(UserErrors) as error:
        read_claims(path)
    assert "claim 'one', check 1: holds: give exactly one of" in str(error.value)
    assert "the smaller bound comes first" in str(error.value)
    assert "the id is taken by an earlier claim" in str(error.value)


def test_unknown_columns_are_named_with_the_nearest(tmp_path):
    with pytest.raises(UserErrors, match=r"unknown column of global 'bytes_ratoi'; did you mean 'bytes_ratio'\?"):
        rulings(tmp_path, check("bytes_ratoi", "below = 1"), [row("a")])
    with pytest.raises(UserErrors, match="unknown column of global 'metod'; did you mean 'method'"):
        rulings(tmp_path, check("bytes_ratio", "below = 1", 'metod = "x"'), [row("a")])
    # A documented column that no run has is not wrong, only not measured.
    assert rulings(tmp_path, check("mean_rank", "below = 1"), [row("a")])[0].verdict == NOT_MEASURED


def test_figures_must_be_numbers(tmp_path):
    with pytest.raises(UserErrors, match="method is no number: 'wanda'"):
        rulings(tmp_path, check("method", "equals = 1"), [row("a")])
    with pytest.raises(UserErrors, match="column method holds no numbers, so it has no bounds"):
        rulings(tmp_path, check("bytes_ratio", "equals = 1", "method = { least = 3 }"), [row("a")])


def test_a_file_that_is_no_toml_or_absent(tmp_path):
    path = tmp_path / "claims.toml"
    for content in (b"[[claim", b"\xff\xfe", b"", b"x = [" + b"[" * 5000):
        path.write_bytes(content)
        with pytest.raises(UserErrors):
            read_claims(path)
    with pytest.raises(UserErrors, match="cannot be read"):
        read_claims(tmp_path / "nowhere.toml")


# --- hostile files --------------------------------------------------------------------------------------------------

HOSTILE = (
    "__import__('pathlib').Path('owned').write_text('x')",
    "bytes_ratio; COPY (SELECT 1) TO 'owned'",
    "@__import__('os').system('touch owned')",
    "{{ ''.__class__.__mro__ }}",
    "../../etc/passwd",
    "bytes_ratio` or `x",
)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["value", "over", "where", "table", "against"])
def test_a_hostile_file_runs_nothing_and_writes_nothing(tmp_path, monkeypatch, text, place):
    monkeypatch.chdir(tmp_path)
    quoted = json.dumps(text)
    lines = {"value": '"bytes_ratio"', "table": '"global"', "where": '{ variant = "masked" }'}
    lines |= {"where": f"{{ {quoted} = 1 }}"} if place == "where" else {}
    lines |= {"against": f"{{ {quoted} = 1 }}"} if place == "against" else {}
    lines |= {place: quoted} if place in ("value", "table", "over") else {}
    body = "".join(f"{key} = {value}\n" for key, value in lines.items())
    checks = f'[[claim.check]]\nwhat = "x"\n{body}holds = {{ below = 1 }}\n'
    with pytest.raises(UserErrors, match="unknown"):
        rulings(tmp_path, checks, [row("a")])
    assert [path.name for path in tmp_path.iterdir()] == ["claims.toml"]


def test_hostile_values_are_compared_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in HOSTILE:
        where = f"method = {json.dumps(text)}"
        assert rulings(tmp_path, check("bytes_ratio", "below = 1", where), [row("a")])[0].verdict == NOT_MEASURED
    assert [path.name for path in tmp_path.iterdir()] == ["claims.toml"]


def test_names_from_tables_are_no_markup(tmp_path):
    hostile = row("a", model="<script>|alert`1`|", bytes_ratio=0.5)
    text = as_markdown(rulings(tmp_path, check("bytes_ratio", "below = 1"), [hostile]))
    assert "<script>" not in text
    assert "\\|alert\\`1\\`\\|" in text


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, synthetic):
    made = synthetic.write_run(tmp_path_factory.mktemp("claims") / "run", sparsities=("0.3", "0.5"), windows=20)
    aggregate_run(made, figures=False)
    return made


def test_tables_of_runs_are_joined_and_a_cell_counts_once(run):
    once, twice = load_tables([run]), load_tables([run, run])
    for name in once:
        assert len(once[name]) == len(twice[name]) > 0 or name == "seeds", name
    assert once["global"]["peak_rss_bytes"].notna().all()  # costs stand beside the figures


def test_claims_of_a_run(run, tmp_path, capsys):
    path = tmp_path / "claims.toml"
    path.write_text(
        HEAD
        + check("bytes_ratio", "below = 0.9", 'variant = "csr", sparsity_target = 0.3, convention = "unique"')
        + HEAD.replace('"one"', '"two"')
        + check("peak_rss_bytes", "above = 1", 'variant = "csr", convention = "unique"')
    )
    first, second = judge_runs([run], path)
    assert (first.verdict, second.verdict) == (FALSE, TRUE)
    (found,) = first.findings[0].evidence
    text, page = as_lines([first, second]), as_markdown([first, second])
    assert found.cell_id in text
    assert found.cell_id in page
    assert "2 claims: 1 true, 1 false" in text
    assert "**False.** A reason." in page
    assert json.loads(json.dumps(first.as_json(), allow_nan=False))["checks"][0]["evidence"][0]["lo"] is None

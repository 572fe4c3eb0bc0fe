"""Pages of results: a small copy of tables, pages and figures from it alone, and the committed ones true to it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from aggregate.api import aggregate_run
from aggregate.atlas import keep_tables, kept_runs, render, tables, write_results
from aggregate.atlas.__main__ import main
from aggregate.atlas.figures import draw
from aggregate.atlas.kept import TABLES
from aggregate.atlas.page import pages
from aggregate.atlas.select import table_of
from aggregate.atlas.twins import CONVENTIONS, NAMES, draw_twin, twins
from aggregate.claims import judge, load_tables, read_claims
from sparsehpc.core.errors import UserError, UserErrors
from sparsehpc.core.layout import RunFolder

RESULTS = Path(__file__).parents[2] / "docs" / "results"
#: A page that uses what the real one uses, for runs that are made up.
TEMPLATE = """# A page

{% set one = cell("methods", method="magnitude", variant="masked", sparsity_target=0.3) %}
Perplexity {{ number(one.perplexity, 6) }}.

{{ conditions }}
{{ claims }}
{{ by_sparsity }}
{{ seeds }}
"""
CLAIMS = """[[claim]]
id = "sizes"
says = "Masked is as large as dense."
stood = "nowhere"
because = "Because."
[[claim.check]]
what = "bytes"
where = { variant = "masked", convention = "unique" }
value = "bytes_ratio"
holds = { equals = 1 }
"""


@pytest.fixture(scope="module")
def methods(tmp_path_factory, synthetic) -> RunFolder:
    """A finished run called ``methods``."""
    grid = {"sparsities": ("0.3", "0.5"), "methods": ("magnitude", "wanda"), "windows": 20}
    run = synthetic.write_run(tmp_path_factory.mktemp("atlas") / "methods", {"smollm2-135m": synthetic.TINY}, **grid)
    aggregate_run(run, figures=False)
    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of results before anything was made."""
    made = tmp_path / "results"
    made.mkdir()
    (made / "index.md.jinja").write_text(TEMPLATE)
    (made / "claims.toml").write_text(CLAIMS)
    (made / "expectations.toml").write_text(CLAIMS)
    return made


def test_pages_and_figures_are_made_and_made_again_the_same(methods, folder):
    written = write_results(folder, [methods])
    assert {path.name for path in written} == {"index.md", "claims.md", "methods.png"}
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert write_results(folder, [methods]) == written
    assert render(folder) == written
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    table = pd.read_parquet(methods.tables / "global.parquet")
    rows = table[(table["method"] == "magnitude") & (table["variant"] == "masked") & (table["sparsity_target"] == 0.3)]
    assert f"Perplexity {rows['perplexity'].iloc[0]:.4f}." in (folder / "index.md").read_text()
    assert "Not measured yet" in (folder / "index.md").read_text()  # the study of seeds did not run


def test_the_copy_is_small_holds_what_is_needed_and_nothing_private(methods, folder):
    provenance = {"sparsehpc": "0.1.0", "commit": "e902364", "home": "/home/ada/x", "versions": {"torch": "2.13"}}
    methods.provenance.write_text(json.dumps(provenance))
    stale = folder / "data" / "gone" / "tables"
    stale.mkdir(parents=True)
    keep_tables([methods], folder / "data")
    copy = kept_runs(folder / "data")
    assert list(copy) == ["methods"]
    assert json.loads(copy["methods"].provenance.read_text()) == {
        k: provenance[k] for k in sorted(provenance) if k != "home"
    }
    names = {path.stem for path in copy["methods"].tables.iterdir()}
    assert names == set(TABLES)
    columns = {name: set(pq.read_schema(copy["methods"].tables / f"{name}.parquet").names) for name in names}
    assert not {"job_id", "started_at", "snapshot_digest"} & columns["costs"]
    assert "perplexity_numerator" in columns["windows"]
    assert "nll_numerator" not in columns["windows"]
    claims = read_claims(folder / "claims.toml")
    first, second = (judge(claims, load_tables([run]))[0].as_json() for run in (methods, copy["methods"]))
    assert first == second


def test_what_cannot_be_copied_or_rendered_is_said(methods, folder, tmp_path):
    with pytest.raises(UserErrors, match="holds no tables"):
        render(folder)
    empty = RunFolder(tmp_path / "empty")
    empty.root.mkdir()
    with pytest.raises(UserErrors, match=r"has no table global.*\n.*two runs|two runs.*\n.*has no table global"):
        keep_tables([methods, methods, empty], folder / "data")
    assert not (folder / "data").exists()
    keep_tables([methods], folder / "data")
    (folder / "index.md.jinja").write_text('{{ cell("methods", method="none-such").perplexity }}')
    with pytest.raises(UserError, match="names 0 cells of methods"):
        render(folder)
    (folder / "index.md.jinja").write_text('{{ benchmark("none") }}')
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        render(folder)
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "some.json").write_text('{"rows": [{"sparsity": 0.3}, {"sparsity": 0.3}]}')
    (folder / "index.md.jinja").write_text('{{ benchmark("some", sparsity=0.3) }}')
    with pytest.raises(UserError, match="2 rows"):
        render(folder)
    (folder / "index.md.jinja").write_text("{{ no_such_table }}")
    with pytest.raises(UserError, match="no_such_table"):
        render(folder)


def test_the_command_prints_the_verdict_of_every_claim(tmp_path, monkeypatch, capsys):
    copy = tmp_path / "results"
    shutil.copytree(RESULTS, copy)
    monkeypatch.setattr("sys.argv", ["atlas", str(copy)])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    claims = read_claims(RESULTS / "claims.toml")
    found = [re.match(r"(true|false|depends|not measured) +([\w-]+): ", line) for line in lines]
    said = {match[2]: match[1] for match in found if match}
    assert list(said) == [claim.id for claim in claims]
    assert said["masked-size"] == "true"
    assert said["csr-size"] == "false"
    assert re.fullmatch(rf"{len(claims)} claims: .*", lines[-1])


# --- the committed pages --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remade() -> dict[str, str]:
    """The committed pages, made again from the committed tables."""
    drawn = [path.stem for path in sorted((RESULTS / "images").glob("*.png"))]
    return pages(RESULTS, kept_runs(RESULTS / "data"), drawn)


@pytest.mark.parametrize("name", ["index.md", "claims.md"])
def test_committed_pages_are_those_of_the_committed_tables(remade, name):
    committed = (RESULTS / name).read_text(encoding="utf-8")
    assert committed == remade[name], "python -m aggregate.atlas docs/results"


def test_a_table_of_the_page_holds_the_figures_of_the_parquet_file():
    """By another way than the page is made: straight from the file."""
    table = pd.read_parquet(RESULTS / "data" / "methods" / "tables" / "global.parquet")
    table = table[(table["convention"] == "unique") & (table["pattern"] == "unstructured") & ~table["refit"]]
    (wanda,) = table[(table["method"] == "wanda") & (table["sparsity_target"] == 0.3)].to_dict("records")
    shown = re.search(r"^\| 30 % \| wanda \| (.*) \|$", (RESULTS / "index.md").read_text(), re.M)
    assert shown is not None
    agreement, kl, perplexity, bits = (
        [float(number) for number in re.findall(r"[\d.]+", cell)] for cell in shown[1].split(" | ")
    )
    for numbers, metric, scale in (
        (agreement, "top1_agreement", 100),
        (kl, "kl", 1),
        (perplexity, "perplexity", 1),
        (bits, "bits_per_byte", 1),
    ):
        expected = [scale * wanda[column] for column in (metric, f"{metric}_lo", f"{metric}_hi")]
        assert numbers == pytest.approx(expected, rel=5e-3), metric  # written with three digits


def test_structured_rows_say_what_was_reached_and_not_only_what_was_asked_for():
    table = pd.read_parquet(RESULTS / "data" / "methods" / "tables" / "global.parquet")
    table = table[(table["convention"] == "unique") & (table["pattern"] == "neurons") & (table["method"] == "flap")]
    (row,) = table[table["sparsity_target"] == 0.3].to_dict("records")
    shown = re.search(
        r"^\| neurons \| flap \| 30 % \| (.*?) % \| (.*?) \| (.*?) \|", (RESULTS / "index.md").read_text(), re.M
    )
    assert shown is not None
    expected = [100 * row["sparsity_prunable"], row["bytes_ratio"], row["flops_executed"] / row["flops_dense"]]
    assert [float(text) for text in shown.groups()] == pytest.approx(expected, rel=5e-3)  # written with three digits
    assert expected[0] < 25  # neurons are a part of what may be pruned


def test_pages_notice_another_table(tmp_path, remade):
    copy = tmp_path / "results"
    shutil.copytree(RESULTS, copy)
    path = copy / "data" / "methods" / "tables" / "global.parquet"
    table = pd.read_parquet(path)
    table.loc[(table["method"] == "wanda") & (table["sparsity_target"] == 0.3), "perplexity"] *= 1.01
    table.to_parquet(path)
    assert pages(copy, kept_runs(copy / "data"), ["methods"])["index.md"] != remade["index.md"]


def test_committed_figures_are_the_ones_that_are_drawn(tmp_path):
    drawn = {path.name for path in draw(kept_runs(RESULTS / "data"), tmp_path)}
    assert drawn == {path.name for path in (RESULTS / "images").iterdir()}
    for page in (RESULTS / "index.md", RESULTS.parents[1] / "README.md"):
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_the_copy_stays_small():
    assert sum(path.stat().st_size for path in (RESULTS / "data").rglob("*") if path.is_file()) < 1_200_000


def test_cells_of_two_studies_that_measured_the_same_are_held_together():
    kept = kept_runs(Path(__file__).parents[2] / "docs" / "results" / "data")
    methods = table_of(kept, "methods")
    both = int(((methods["method"] != "none") & methods["perplexity"].notna()).sum())
    assert tables.repeated(methods, methods).startswith(f"{both} cells are in both studies")
    assert tables.repeated(methods, methods).endswith("are equal to the last digit.")
    other = methods.assign(perplexity=methods["perplexity"] * 1.01)
    assert tables.repeated(other, methods).endswith("differ by at most 1.0 %.")
    assert tables.repeated(methods, methods.assign(evaluation_digest="another text")) == ""
    assert tables.repeated(methods, methods.iloc[:0]) == ""


# --- the six plots and their twins ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paired():
    return twins(kept_runs(RESULTS / "data"))


def opt_row(name, **wanted) -> dict:
    """A row of OPT-125M's shape, straight from the file."""
    table = pd.read_parquet(RESULTS / "data" / "reference-untrained" / "tables" / f"{name}.parquet")
    table = table[table["model"] == "random:opt-125m"]
    for column, value in wanted.items():
        table = table[table[column] == value]
    (row,) = table.to_dict("records")
    return row


def test_bars_are_the_rows_of_both_accountings(paired):
    assert tuple(paired) == NAMES
    for convention in CONVENTIONS:
        for variant in ("dense", "masked", "csr"):
            row = opt_row("global", convention=convention, variant=variant)
            assert paired["size"].value(convention, variant) == pytest.approx(row["bytes_total"] / 2**20)
            assert paired["sparsity"].value(convention, variant) == pytest.approx(100 * row["sparsity"])
            assert paired["flops"].total(convention, variant) == pytest.approx(row["flops_executed"] / 1e6)
            group = opt_row("groups", convention=convention, variant=variant, group="mlp")
            assert paired["flops"].value(convention, variant, "mlp") == pytest.approx(group["flops_executed"] / 1e6)
        assert sum(bar.value for key, bar in paired["shares"].bars.items() if key[0] == convention) == pytest.approx(
            100
        )
        # What pruning made: three tenths of the weights, of which the old accounting of CSR leaves the biases out.
        made = paired["groups"]
        assert made.value(convention, "csr", "embedding") == 0
        before = opt_row("groups", convention=convention, variant="dense", group="attention")["params_nonzero"]
        after = opt_row("groups", convention=convention, variant="csr", group="attention")
        share = 100 * (before - after["params_nonzero"]) / after["params_total"]
        assert made.value(convention, "csr", "attention") == pytest.approx(share)
    assert ("study", "lm_head", "csr") in made.bars
    assert ("unique", "lm_head", "csr") not in made.bars
    old, new = (paired["agreement"].bar(convention, "csr") for convention in ("study", "unique"))
    assert old.value == new.value
    assert pd.isna(old.lo)
    assert new.lo < new.value < new.hi


def test_every_pair_stands_on_the_page_with_its_sentence_and_its_figures(paired):
    page = (RESULTS / "index.md").read_text(encoding="utf-8")
    section = page.partition("### The six plots, then and now")[2].partition("\n### ")[0]
    parts = re.split(r"!\[[^]]+\]\(images/twin-(\w+)\.png\)\n", section)
    sentences = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert tuple(sentences) == NAMES
    for text in sentences.values():  # a word in bold and one sentence
        assert re.fullmatch(r"\*\*[^*]+\.\*\* (?:(?!\. ).)+\.", text.strip(), re.S), text
    size = [opt_row("global", convention=each, variant="csr")["bytes_total"] / 2**20 for each in CONVENTIONS]
    assert re.findall(r"([\d.]+) MiB", sentences["size"]) == [f"{size[0]:.2f}", "477.75", f"{size[1]:.2f}"]
    head = opt_row("groups", convention="study", variant="dense", group="lm_head")["param_fraction"]
    assert f"the second time as {100 * head:.1f} % of all" in sentences["shares"]
    looked_up = opt_row("groups", convention="study", variant="dense", group="embedding")["flops_executed"]
    assert f"{looked_up / 1e6:.1f} of 327 million" in sentences["flops"]


def test_sentences_of_the_pairs_follow_the_tables(tmp_path, remade):
    copy = tmp_path / "results"
    shutil.copytree(RESULTS, copy)
    path = copy / "data" / "reference-untrained" / "tables" / "groups.parquet"
    table = pd.read_parquet(path)
    here = (table["group"] == "embedding") & (table["convention"] == "study")
    table.loc[here, "flops_executed"] *= 2
    table.to_parquet(path)
    assert pages(copy, kept_runs(copy / "data"), ["methods"])["index.md"] != remade["index.md"]
    shutil.rmtree(copy / "data" / "reference-untrained")
    runs = kept_runs(copy / "data")
    assert twins(runs) == {}
    drawn = {found.name for found in draw(runs, copy / "images")}
    assert not any(name.startswith("twin-") for name in drawn)
    assert drawn == {found.name for found in (copy / "images").iterdir()}, "pairs of gone tables go, too"
    assert "twin-" not in pages(copy, runs, ["methods"])["index.md"]


def test_both_panels_of_a_pair_are_on_one_scale_and_in_one_order(paired):
    for twin in paired.values():
        left, right = draw_twin(twin).axes
        assert left.get_ylim() == right.get_ylim()
        assert [tick.get_text() for tick in left.get_xticklabels()] == [
            tick.get_text() for tick in right.get_xticklabels()
        ]
        for axes, convention in ((left, "study"), (right, "unique")):
            heights = [patch.get_height() for patch in axes.patches]
            assert heights == [bar.value for key, bar in twin.bars.items() if key[0] == convention]
            assert axes.get_title(loc="left") == f"{CONVENTIONS[convention]} ({convention})"


def test_a_bar_that_is_not_there_is_said(paired):
    with pytest.raises(UserError, match="not there: unique bitmap of Size"):
        paired["size"].value("unique", "bitmap")


def test_images_of_the_pairs_are_light():
    assert all((RESULTS / "images" / f"twin-{name}.png").stat().st_size < 60_000 for name in NAMES)

"""The report in a real headless Chromium: offline, filters, hover, sort, download, address, dark mode, names."""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from aggregate.api import aggregate_run
from aggregate.report import write_report
from sparsehpc.core import shards
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.schema import Measurement

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">&lt;b&gt;'

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory, synthetic) -> Path:
    small = synthetic.Shape(3, 16, 32, 64, 16, source_bytes=9000)
    random = dataclasses.replace(small, trained=False)
    run = synthetic.write_run(
        tmp_path_factory.mktemp("page") / "run",
        {"tiny": small, HOSTILE: random},
        sparsities=("0.1", "0.3", "0.5"),
        methods=("magnitude", "random"),
        windows=16,
    )
    aggregate_run(run, figures=False)
    return write_report(run)


@pytest.fixture
def open_page(open_report, report):
    """Open the page of the synthetic run."""
    return functools.partial(open_report, report)


def rows(page) -> list[list[str]]:
    return page.evaluate(
        "[...document.querySelectorAll('#cells tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )


def test_page_loads_offline_and_draws_every_view(open_page):
    page = open_page()
    for view in ("perplexity", "agreement", "size", "pareto", "promise", "bins", "flips", "heat", "layer"):
        assert page.locator(f"#view-{view} .main-svg").count() >= 1, view
        assert page.locator(f"#view-{view}").get_attribute("aria-label")
    assert len(rows(page)) == 13
    assert page.locator("#coverage").inner_text().count("26 of 26 cells are done") == 1


def test_filters_narrow_every_view_and_stand_in_the_address(open_page):
    page = open_page()
    page.select_option("#method", "random")
    page.select_option("#variant", "csr")
    assert {row[2] for row in rows(page)} == {"none", "random"}
    names = page.evaluate("document.getElementById('view-perplexity').data.map(t => t.name)")
    assert names == ["csr, random, unstructured"]
    assert "method=random" in page.url
    assert "variant=csr" in page.url
    other = open_page("#/?method=random&variant=csr&sort=perplexity&desc=1")
    assert other.input_value("#method") == "random"
    assert {row[5] for row in rows(other)} == {"dense", "csr"}
    other.click("#reset")
    assert len(rows(other)) == 13


def test_points_carry_intervals_and_hover_tells_the_figure(open_page):
    page = open_page()
    first = page.evaluate(
        "(() => { const t = document.getElementById('view-perplexity').data[0];"
        " return [t.x, t.y, t.error_y.array, t.error_y.arrayminus]; })()"
    )
    assert first[0] == [0, 10, 30, 50]
    assert first[2][0] == 0
    assert min(first[2][1:]) > 0
    assert min(first[3][1:]) > 0
    page.evaluate("Plotly.Fx.hover('view-perplexity', [{curveNumber: 0, pointNumber: 2}])")
    text = page.locator("#view-perplexity .hoverlayer").text_content()
    assert "at 30 %" in text
    assert "[" in text


def test_references_stay_on_the_front_whatever_is_chosen(open_page):
    page = open_page("#/?variant=csr&method=random")
    names = page.evaluate("document.getElementById('view-pareto').data.map(t => t.name)")
    assert {"dense", "csr"} <= set(names)
    assert "masked" not in names


def test_the_front_is_shown_against_bytes_and_time_and_by_either_loss(open_page):
    page = open_page("#/?loss=top1_agreement")
    plot = "document.getElementById('view-pareto')"
    front = f"{plot}.data.find(t => t.name === 'front')"
    agreement = page.evaluate(f"[{front}.x, {front}.y]")
    assert agreement[0] == sorted(agreement[0])
    assert agreement[1] == sorted(agreement[1])
    assert agreement[1][-1] == 100
    page.select_option("#loss", "perplexity")
    assert "loss=" not in page.url
    later = page.evaluate(f"{front}.y")
    assert later == sorted(later, reverse=True)
    assert "dense" in page.evaluate(f"{plot}.layout.annotations.map(a => a.text)")
    # Nothing was timed here: size is the only cost, and there is no view of speed.
    assert page.locator("#cost option").all_inner_texts() == ["size"]
    assert not page.locator("#speed-view").is_visible()


def test_an_entry_of_a_legend_hides_its_line_everywhere(open_page):
    page = open_page()
    name = "csr, random, unstructured"
    page.locator("#view-perplexity-legend button", has_text=name).click()
    for view in ("perplexity", "agreement"):
        shown = page.evaluate(f"document.getElementById('view-{view}').data.find(t => t.name === '{name}').visible")
        assert shown is False
        assert page.locator(f"#view-{view}-legend button[aria-pressed=false]").all_text_contents() == [
            f"\N{BLACK UP-POINTING TRIANGLE}{name}"
        ]
    assert name in page.evaluate("document.activeElement.innerText")
    again = open_page(page.url[page.url.index("#") :])
    assert again.locator("#view-agreement-legend button[aria-pressed=false]").count() == 1
    again.locator("#view-agreement-legend button[aria-pressed=false]").click()
    assert "off=" not in again.url


def test_on_paper_tables_and_figures_are_open_and_the_views_away(open_page):
    page = open_page(color_scheme="dark")
    assert not page.locator("#results-table").is_visible()
    page.emulate_media(media="print")
    page.locator("#results-table").wait_for(state="visible")
    assert page.locator("#figures img").first.is_visible()
    assert not page.locator("#explore").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    # A4 on its side, less the margins: no column of any table falls off.
    page.set_viewport_size({"width": 1030, "height": 900})
    assert max(page.locator("table:visible").evaluate_all("all => all.map(t => t.scrollWidth)")) <= 1030
    page.emulate_media(media="screen")
    page.locator("#results-table").wait_for(state="hidden")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#results-table").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("#results-table").is_visible()


def test_bins_and_flips_follow_the_choice(open_page):
    page = open_page()
    traces = "document.getElementById('view-bins').data"
    assert page.evaluate(f"{traces}.map(t => t.x)")[0] == ["0 to 0.1", "0.1 to 3", "3 and more"]
    by_margin = page.evaluate(f"{traces}[0].y")
    assert by_margin == sorted(by_margin)
    assert by_margin[0] < by_margin[2] < 100
    page.select_option("#by", "position")
    assert "by=position" in page.url
    assert page.evaluate(f"{traces}[0].x") == ["0 to 16", "16 and more"]
    page.select_option("#s", "0.5")
    later = page.evaluate(f"{traces}[0].y")
    page.select_option("#s", "0.1")
    assert page.evaluate(f"{traces}[0].y")[0] > later[0]
    names = page.evaluate("document.getElementById('view-flips').data.map(t => t.name)")
    assert {name.split(":")[0] for name in names} == {"lost", "won"}
    assert len(names) == 8
    page.select_option("#method", "random")
    assert len(page.evaluate("document.getElementById('view-flips').data")) == 4


def test_heat_map_opens_a_layer(open_page):
    page = open_page()
    page.locator("#view-heat").scroll_into_view_if_needed()
    area = page.locator("#view-heat .nsewdrag").first.bounding_box()
    columns = page.evaluate("document.getElementById('view-heat').data[0].x.length")
    # The middle of three layers, the first projection.
    page.mouse.move(area["x"] + area["width"] / columns / 2, area["y"] + area["height"] / 2)
    page.locator("#view-heat .hoverlayer .hovertext").wait_for()
    text = page.locator("#view-heat .hoverlayer").text_content()
    shown = page.evaluate("document.getElementById('view-heat').data[0].z[1][0]")
    assert text.startswith("layer 1, ")
    assert f"{shown:.4g}" in text
    page.select_option("#layer", "2")
    assert page.evaluate("document.getElementById('view-layer').layout.title.text").startswith("Layer 2")
    page.evaluate("document.getElementById('view-heat').emit('plotly_click', {points: [{y: 1}]})")
    assert page.input_value("#layer") == "1"
    assert "layer=1" in page.url
    page.select_option("#what", "bytes")
    assert page.evaluate("document.getElementById('view-heat').layout.title.text").startswith("bytes")


def test_table_sorts_searches_and_downloads(open_page, tmp_path):
    page = open_page()
    column = page.evaluate(
        "[...document.querySelectorAll('#cells th')].findIndex(h => h.innerText.trim().startsWith('perplexity'))"
    )
    button = page.locator("#cells th button").nth(column)
    button.click()
    values = [float(row[column].replace(",", "")) for row in rows(page)]
    assert values == sorted(values)
    assert page.locator("#cells th").nth(column).get_attribute("aria-sort") == "ascending"
    page.locator("#cells th button").nth(column).click()
    values = [float(row[column].replace(",", "")) for row in rows(page)]
    assert values == sorted(values, reverse=True)
    page.fill("#q", "magnitude csr")
    assert len(rows(page)) == 3
    with page.expect_download() as waiting:
        page.click("#download")
    target = tmp_path / "cells.csv"
    waiting.value.save_as(target)
    with target.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert len(lines) == 4
    assert {line[2] for line in lines[1:]} == {"magnitude"}


def test_theme_follows_the_system_and_the_choice(open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    page = open_page(color_scheme="dark")
    assert page.evaluate(background) == "rgb(20, 24, 29)"
    page.select_option("#theme", "light")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert open_page("#/?theme=dark").evaluate(background) == "rgb(20, 24, 29)"


def test_a_hostile_model_name_is_a_name(open_page):
    page = open_page("#/?model=")
    page.locator("#twins summary").click()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0
    assert any(HOSTILE in row[0] for row in rows(page))
    page.select_option("#model", "1")
    assert page.evaluate("window.hacked") is None


def test_untrained_models_are_marked_in_every_view(open_page):
    page = open_page("#/?model=1")
    page.locator("#twins summary").click()
    for view in page.locator(".view > div[role=img]").all():
        if view.is_visible():
            assert "untrained" in view.inner_text(), view.get_attribute("id")
    marks = page.locator("#cells th", has_text=re.compile("^mark$")).evaluate("head => head.cellIndex")
    assert all("untrained" in row[marks] for row in rows(page))
    page.select_option("#model", "0")
    assert "untrained" not in page.locator("#view-size").inner_text()


def test_links_inside_the_page_keep_the_state(open_page):
    page = open_page("#/?variant=csr")
    page.locator("nav a[href='#definitions']").click()
    assert "variant=csr" in page.url
    assert page.evaluate("document.activeElement.id") == "definitions"


def test_old_figures_stand_beside_their_twins(open_page):
    page = open_page()
    page.locator("#twins summary").click()
    page.locator("#twin-agreement-unique .main-svg").first.wait_for()
    sizes = {
        side: page.evaluate(f"document.getElementById('twin-bytes-{side}').data[0].y") for side in ("study", "unique")
    }
    names = page.evaluate("document.getElementById('twin-bytes-study').data[0].x")
    csr, dense = names.index("csr"), names.index("dense")
    assert sizes["study"][csr] < sizes["study"][dense] < sizes["unique"][csr]
    for key in ("global", "group", "share", "flops", "agreement"):
        assert page.locator(f"#twin-{key}-unique .main-svg").count() >= 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_issue(open_page, scheme, axe):
    page = open_page(color_scheme=scheme)
    page.locator("#twins summary").click()
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        (violation["id"], violation["nodes"][0]["html"][:200])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_without_javascript_tables_and_figures_are_there(open_page):
    page = open_page(java_script_enabled=False)
    assert not page.locator("#explore").is_visible()
    assert page.locator("#results-table tbody tr").count() == 26
    assert page.locator("#results-table").is_visible()
    assert page.locator("#figures img").first.is_visible()
    assert page.locator("#headline li").first.is_visible()


@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_runs_out_of_a_narrow_or_a_wide_window(open_page, width):
    page = open_page(viewport={"width": width, "height": 6000})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_works_by_keyboard(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#cells th button").first.focus()
    page.keyboard.press("Enter")
    assert "sort=model" in unquote(page.url)
    assert re.search(r"model", page.evaluate("document.activeElement.innerText"))


def test_page_stays_small(report):
    assert report.stat().st_size < 8_000_000


@pytest.mark.parametrize("done", [0, 1])
def test_page_of_a_run_that_has_hardly_begun(browser, tmp_path, synthetic, done, monkeypatch):
    monkeypatch.setattr("aggregate.report.draw_figures", lambda run: [])
    run = RunFolder(tmp_path / "run")
    cells = synthetic.cells_of("tiny", sparsities=("0.3",))
    synthetic.write_plan(run, cells)
    for cell in cells[:done]:
        synthetic.write_cell(run, cell, synthetic.TINY)
    context = browser.new_context(offline=True)
    page, said = context.new_page(), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(write_report(run).as_uri())
    page.wait_for_function("document.documentElement.dataset.ready === '1'")
    page.locator("#twins summary").click()
    page.wait_for_timeout(100)
    assert page.locator("#view-perplexity-none").is_visible()
    assert said == []
    context.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory, synthetic) -> Path:
    """A page of fourteen ways of pruning: nine methods, patterns at one sparsity, one method worse than guessing."""
    run = RunFolder(tmp_path_factory.mktemp("many") / "run")
    names = ("magnitude", "random", "wanda", "ria", "sparsegpt", "admm", "flap", "owl", "layerwise")
    cells = synthetic.cells_of("tiny", sparsities=("0.3", "0.5"), methods=names, variants=("masked",), windows=16)
    half = [cell for cell in cells if not cell.is_dense and cell.pruning.sparsity == "0.5"]
    cells += [
        dataclasses.replace(cell, pruning=dataclasses.replace(cell.pruning, pattern="2:4"))
        for cell in half
        if cell.pruning.method in ("magnitude", "wanda", "ria")
    ]
    cells += [
        dataclasses.replace(cell, pruning=dataclasses.replace(cell.pruning, refit=True))
        for cell in half
        if cell.pruning.method in ("magnitude", "wanda")
    ]
    cells += [dataclasses.replace(cell, variant="csr") for cell in half if cell.pruning.method == "magnitude"]
    shape = synthetic.Shape(3, 16, 32, 64, 16, source_bytes=9000)
    synthetic.write_plan(run, cells)
    for cell in cells:
        mark = "worse than guessing" if cell.pruning.method == "random" else ""
        rows = synthetic.structure_rows(cell, shape) + synthetic.window_rows(cell, shape, cell.evaluation.windows)
        if cell.variant == "csr":
            rows.append(Measurement("model", "model", "break_even_sparsity", 0.5078125, reduction="mean"))
        shards.write_shard(run.cell(cell.cell_id), synthetic.cell_row(cell, shape, mark), rows)
    aggregate_run(run, figures=False)
    return write_report(run)


def test_size_says_from_which_sparsity_on_a_format_is_smaller(open_report, many):
    page = open_report(many, "#/?s=0.5")
    text = page.locator("#break-even").inner_text()
    assert text == "Smaller than dense in the same dtype from: csr 50.78 % (sparsity of each weight matrix)."
    # Equal bytes in one format are one bar: fourteen ways of pruning at 50 % come to the bytes of masked.
    bars = page.evaluate("document.getElementById('view-size').data[0].y")
    assert [bar.replace("<br>", " ") for bar in bars] == [
        "dense",
        "masked, 14 ways of pruning",
        "csr, magnitude, unstructured",
    ]
    page.select_option("#variant", "masked")
    assert page.locator("#break-even").inner_text() == ""


def test_filter_by_pattern(open_report, many):
    page = open_report(many)
    column = page.locator("#cells th", has_text=re.compile("^pattern")).evaluate("head => head.cellIndex")
    assert {row[column] for row in rows(page)} == {"none", "unstructured", "2:4"}
    page.select_option("#pattern", "2:4")
    assert {row[column] for row in rows(page)} == {"none", "2:4"}
    traces = "document.getElementById('view-agreement').data"
    assert page.evaluate(f"{traces}.map(t => t.name)") == [
        f"masked, {name}, 2:4" for name in ("magnitude", "wanda", "ria")
    ]
    # Single points are no lines.
    assert set(page.evaluate(f"{traces}.map(t => t.mode)")) == {"markers"}
    assert "pattern=2%3A4" in page.url


def test_many_ways_of_pruning_stay_apart_and_legible(open_report, many):
    for width in (1400, 420):
        page = open_report(many, viewport={"width": width, "height": 6000})
        traces = "document.getElementById('view-agreement').data"
        looks = page.evaluate(f"{traces}.map(t => JSON.stringify([t.line.color, t.line.dash, t.marker.symbol]))")
        assert len(looks) == len(set(looks)) == 15
        # Short names: what is usual goes without saying.
        names = page.evaluate(f"{traces}.map(t => t.name)")
        assert {"masked, magnitude, unstructured", "masked, magnitude, unstructured, refit"} <= set(names)
        # The plot keeps its room, whatever stands in the legend; the legend stands below it.
        for view in ("perplexity", "agreement", "flips"):
            area = page.locator(f"#view-{view} .nsewdrag").first.bounding_box()
            assert area["height"] > 200
            assert area["width"] > 0.6 * page.locator(f"#view-{view}").bounding_box()["width"]
            legend = page.locator(f"#view-{view}-legend").bounding_box()
            plot = page.locator(f"#view-{view}").bounding_box()
            assert legend["y"] >= plot["y"] + plot["height"] - 1
        # Ticks do not touch each other.
        ticks = [tick.bounding_box() for tick in page.locator("#view-perplexity .ytick").all()]
        places = sorted(tick["y"] for tick in ticks)
        assert min(b - a for a, b in itertools.pairwise(places)) > 8


def test_cells_worse_than_guessing_are_named_and_not_drawn(open_report, many):
    page = open_report(many)
    names = page.evaluate("document.getElementById('view-perplexity').data.map(t => t.name)")
    assert not [name for name in names if "random" in name]
    assert page.evaluate("document.getElementById('view-agreement').data.some(t => t.name.includes('random'))")
    for view in ("perplexity", "pareto"):
        assert "random, unstructured at 30 %, 50 %" in page.locator(f"#view-{view}-note").inner_text()
    head = page.locator("#headline").inner_text()
    assert "is worse than guessing" not in head  # random keeps least: it gets no sentence
    assert "random" not in head


def test_axe_finds_no_serious_issue_among_many_ways(open_report, many, axe):
    page = open_report(many, viewport={"width": 420, "height": 6000})
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [v["id"] for v in found["violations"] if v["impact"] in ("serious", "critical")] == []

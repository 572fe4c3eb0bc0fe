"""Views of the page are drawn when they come near the window, by whatever way; on paper figures stand for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aggregate.api import aggregate_run
from aggregate.report import write_report

pytestmark = pytest.mark.browser

VIEWS = ("perplexity", "agreement", "size", "pareto", "promise", "bins", "flips", "heat", "layer")
WINDOW = {"width": 1100, "height": 700}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, synthetic: Any) -> Path:
    run = synthetic.write_run(
        tmp_path_factory.mktemp("lazy") / "run",
        {"tiny": synthetic.Shape(3, 16, 32, 64, 16, source_bytes=9000)},
        sparsities=("0.1", "0.3"),
        methods=("magnitude", "random"),
        windows=16,
    )
    aggregate_run(run, figures=False)
    return write_report(run)


@pytest.fixture
def open_page(open_report: Callable[..., Any], report: Path) -> Callable[..., Any]:
    """Open the page in a window of usual height."""
    return functools.partial(open_report, report, viewport=WINDOW)


def drawn(page: Any) -> set[str]:
    """Views that have a plot."""
    ids = page.evaluate("[...document.querySelectorAll('.view > [role=img]:has(.main-svg)')].map(box => box.id)")
    return {name.removeprefix("view-") for name in ids}


def wait_for(page: Any, view: str) -> None:
    page.locator(f"#view-{view} .main-svg").first.wait_for(state="attached")


def scroll_through(page: Any) -> None:
    """To the end of the page, as far as it has grown, a window at a time."""
    page.evaluate(
        """async () => {
          for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) {
            scrollTo(0, y);
            for (let n = 0; n < 4; n += 1) await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
          }
        }"""
    )


def test_only_what_is_near_the_window_is_drawn_and_the_rest_when_scrolled_to(open_page):
    page = open_page()
    assert not drawn(page) & {"pareto", "bins", "flips", "heat", "layer"}
    assert (
        page.get_attribute("#view-heat", "aria-label") == "Zeros by layer and projection, drawn when it is scrolled to"
    )
    # Text, filters and the table of cells wait for no plot.
    assert page.locator("#cells tbody tr").count() == 9
    assert page.locator("#method option").count() == 3
    # A plot to come keeps its room, so that the page does not jump when it is there.
    assert page.locator(".view:has(#view-heat)").bounding_box()["height"] >= 400
    page.locator("#view-heat").scroll_into_view_if_needed()
    wait_for(page, "heat")
    assert page.get_attribute("#view-heat", "aria-label").startswith("zeros of 3 layers")
    assert page.locator("#heat option").count() > 0
    scroll_through(page)
    assert drawn(page) == set(VIEWS)
    for view in VIEWS:
        # The box is as high as its plot, and the legend below it.
        plot, box = (page.locator(f"#view-{view}{part}").first.bounding_box() for part in (" .main-svg", ""))
        assert plot["y"] + plot["height"] <= box["y"] + box["height"] + 1, view
        assert plot["height"] >= 200


def test_a_choice_reaches_views_out_of_sight_when_they_are_scrolled_to(open_page):
    page = open_page()
    scroll_through(page)
    names = "document.getElementById('view-flips').data.map(t => t.name)"
    assert len(page.evaluate(names)) == 8
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("scrollY === 0")
    # Two frames: the observer has seen that the view is away.
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")
    # Without scrolling the page to the filter, as a choice by the address does.
    page.evaluate("location.hash = '#/?method=random'")
    page.wait_for_function("document.getElementById('method').value === 'random'")
    assert len(page.evaluate(names)) == 8
    page.locator("#view-flips").scroll_into_view_if_needed()
    page.wait_for_function(f"{names}.length === 4")
    assert all("random" in name for name in page.evaluate(names))


@pytest.mark.parametrize("way", ["link", "address", "keyboard"])
def test_views_are_drawn_where_a_jump_leads(open_page, way):
    page = open_page("#explore" if way == "address" else "")
    if way == "link":
        page.click("nav a[href='#explore']")
    if way == "keyboard":
        page.focus("#method")
        page.keyboard.press("Tab")
        page.locator("#layer").focus()
        wait_for(page, "layer")
        assert page.evaluate("document.activeElement.options.length") == 3
        assert "perplexity" in drawn(page) or page.evaluate("scrollY") > 0
        return
    wait_for(page, "perplexity")
    wait_for(page, "agreement")
    assert page.evaluate("document.getElementById('explore').getBoundingClientRect().top") < WINDOW["height"] / 2


def test_folded_views_are_drawn_when_they_are_opened(open_page):
    page = open_page()
    scroll_through(page)
    twins = "document.querySelectorAll('#twins .main-svg').length"
    assert page.evaluate(twins) == 0
    page.locator("#twins summary").click()
    page.locator("#twin-agreement-unique .main-svg").first.wait_for(state="attached")
    assert page.locator("#twins [role=img]:has(.main-svg)").count() == 12


def test_printing_from_the_top_prints_every_static_figure(open_page):
    page = open_page()
    figures = "[...document.querySelectorAll('#figures img')]"
    assert page.evaluate(f"{figures}.length") >= 5
    printed = page.pdf()
    assert page.evaluate(f"{figures}.every(one => one.complete && one.naturalWidth > 0)")
    # A page without figures is a fraction of one with them.
    page.evaluate(f"{figures}.forEach(one => one.remove())")
    assert len(printed) > 1.2 * len(page.pdf())


def test_without_scripts_figures_and_tables_stay_open(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("details.static[open]").count() == page.locator("details.static").count() > 1
    page.locator("#figures img").last.scroll_into_view_if_needed()
    assert page.locator("#figures img").last.bounding_box()["height"] > 100
    assert not page.locator("#explore").is_visible()


def test_plots_keep_their_height_however_often_they_are_drawn(open_page: Callable[..., Any]) -> None:
    page = open_page()
    scroll_through(page)
    heights = """() => [...document.querySelectorAll(".view > [role=img]:has(.main-svg)")]
      .filter((box) => box.offsetParent)
      .map((box) => [box.id, box.offsetHeight, box.querySelector(".main-svg").getBoundingClientRect().height])"""
    before = {name: height for name, height, _ in page.evaluate(heights)}
    assert len(before) >= len(VIEWS) - 1
    for control, choice in (("method", "random"), ("method", "magnitude"), ("method", ""), ("theme", "dark")):
        page.select_option(f"#{control}", choice)
        scroll_through(page)
        for name, height, plot in page.evaluate(heights):
            assert height >= plot > 200, (name, control, choice, height, plot)
    assert {name: height for name, height, _ in page.evaluate(heights)} == before

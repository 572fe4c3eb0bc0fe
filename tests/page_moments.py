"""When a page in a browser reaches what a reader waits for, by the page's own clock: seconds since it was asked for."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

WINDOW = {"width": 1400, "height": 900}
#: Notes, once a frame has been painted, the first time at which something holds.
_WATCH = """
window.moments = {};
const note = (name, holds) => { if (holds) moments[name] ??= performance.now() / 1000; };
const inWindow = () => [...document.querySelectorAll("#explore .view > [role=img]")].filter((box) => {
  const place = box.getBoundingClientRect();
  return place.height && place.top < innerHeight && place.bottom > 0;
});
// A message comes before any timer: what the page draws next does not count for the frame just painted.
const painted = new MessageChannel();
const watch = () => requestAnimationFrame(() => painted.port2.postMessage(0));
painted.port1.onmessage = () => {
  note("usable", document.querySelector("#cells tbody tr"));
  const boxes = inWindow(), drawn = boxes.filter((box) => box.querySelector(".main-svg"));
  note("first view", drawn.length);
  note("views in the window", boxes.length && drawn.length === boxes.length);
  watch();
};
watch();
"""
_SCROLL = """async () => {
  const missing = () => [...document.querySelectorAll("#explore > .view, #explore > .views .view")]
    .filter((view) => view.offsetParent && !view.querySelector(".main-svg"))
    .filter((view) => view.querySelector("p[id$=none]").hidden);
  for (let next; (next = missing()[0]); ) {
    next.scrollIntoView({ block: "center" });
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  }
  return performance.now() / 1000;
}"""
_CHOOSE = """async (method) => {
  const started = performance.now(), select = document.getElementById("method");
  select.value = method;
  select.dispatchEvent(new Event("change"));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return (performance.now() - started) / 1000;
}"""


def _open(browser: Any, page: Path, jump: str) -> tuple[Any, Any]:
    context = browser.new_context(offline=True, viewport=WINDOW)
    tab = context.new_page()
    tab.add_init_script(_WATCH)
    tab.goto(page.as_uri() + jump)
    return context, tab


def moments(browser: Any, page: Path, method: str) -> dict[str, float]:
    """One opening at the top, one at the views with a scroll through all of them and a choice of a method."""
    context, tab = _open(browser, page, "")
    tab.wait_for_function("window.moments.usable")
    navigation = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
    found = {
        "first paint": tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"),
        "text, filters and table": tab.evaluate("moments.usable"),
        "load event": tab.evaluate(navigation),
    }
    context.close()
    context, tab = _open(browser, page, "#explore")
    tab.wait_for_function("window.moments['views in the window']", timeout=200_000)
    seen = tab.evaluate("moments")
    found |= {
        "first view, opened at the views": seen["first view"],
        "views in the window, opened at the views": seen["views in the window"],
        "all views, scrolled through": tab.evaluate(_SCROLL),
    }
    tab.evaluate("document.getElementById('explore').scrollIntoView()")
    found["a choice, to the next frame"] = tab.evaluate(_CHOOSE, method)
    context.close()
    return found


def summary(measured: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Median, least and most of every moment."""
    return {
        name: (statistics.median(values), min(values), max(values))
        for name in measured[0]
        for values in [[one[name] for one in measured]]
    }

"""The report of ten thousand cells: small enough to send, and drawn by a real browser."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from page_moments import WINDOW, moments, summary

from aggregate.api import aggregate_run
from aggregate.report import write_report
from aggregate.tables import read_table, write_tables
from sparsehpc.core.layout import RunFolder

CELLS = 10_000
REPEATS = 5
TABLES = ("global", "groups", "tensors", "windows", "bins", "costs", "coverage", "pareto", "tipping", "layers")

# Drawing the static figures of 500 ways of pruning takes minutes.
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, synthetic) -> RunFolder:
    """Tables of a run of 5 methods, 100 settings and 10 sparsities in 2 variants, spread out from a small run's."""
    run = synthetic.write_run(
        tmp_path_factory.mktemp("large") / "run",
        {"tiny": synthetic.Shape(4, 16, 32, 64, 16, source_bytes=9000)},
        sparsities=(*(f"0.{n}" for n in range(1, 10)), "0.95"),
        methods=("magnitude", "random", "wanda", "ria", "sparsegpt"),
        windows=16,
    )
    aggregate_run(run, figures=False)
    copies = CELLS // 100
    tables: dict[str, pa.Table] = {}
    for name in TABLES:
        table = read_table(run, name)
        frame = table.to_pandas()
        parts = [frame]
        pruned = frame[frame["method"] != "none"]
        noise = np.random.default_rng(0)
        for copy in range(1, copies):
            part = pruned.assign(options=f'{{"setting": {copy}}}')
            if "cell_id" in part:
                part["cell_id"] = [
                    hashlib.sha256(f"{copy} {cell}".encode()).hexdigest()[:20] for cell in part["cell_id"]
                ]
            if "perplexity" in part and name == "global":
                shift = noise.uniform(0.9, 1.2)
                for column in ("perplexity", "perplexity_lo", "perplexity_hi"):
                    part[column] = part[column] * shift
            parts.append(part)
        whole = pd.concat(parts if name not in ("windows", "tensors", "layers") else parts[:1], ignore_index=True)
        tables[name] = pa.Table.from_pandas(whole, schema=table.schema, preserve_index=False)
    write_tables(run, tables | {"seeds": read_table(run, "seeds")})
    return run


def test_ten_thousand_cells_open(large: RunFolder, browser: Any, open_report: Callable[..., Any]) -> None:
    """With its static figures drawn; prints what docs/results/benchmarks-aggregate.md holds, and asserts no time."""
    with warnings.catch_warnings():
        # Five hundred panels do not fit a figure; the tables beside it say what it cannot.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        page = write_report(large)
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 25_000_000
    assert _cells_in(text) == CELLS + 1
    assert text.count("<img") >= 5
    # What the page leaves to the folder beside it, it says.
    assert "Too large for this page, and in the folder" in text
    assert "9701 more rows are in the tables" in text
    tab = open_report(page, "#explore", viewport=WINDOW)
    tab.locator("#view-agreement .main-svg").first.wait_for(state="attached")
    assert "10,001 cells" in tab.locator("#count").inner_text()
    assert tab.locator("#view-heat .main-svg").count() == 0
    for view in ("size", "pareto", "promise", "heat"):
        tab.locator(f"#view-{view}").scroll_into_view_if_needed()
        tab.locator(f"#view-{view} .main-svg").first.wait_for(state="attached")
    tab.select_option("#method", "wanda")
    assert "2,001 cells" in tab.locator("#count").inner_text()
    tab.context.close()
    measured = summary([moments(browser, page, "ria") for _ in range(REPEATS)])
    lines = [f"| {name} | {middle:.2f} [{least:.2f}, {most:.2f}] |" for name, (middle, least, most) in measured.items()]
    sys.stdout.write("\n".join([f"page of {page.stat().st_size / 1e6:.1f} MB, {REPEATS} times:", *lines, ""]))


def _cells_in(text: str) -> int:
    start = text.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    return int(json.loads(text[start : text.index("</script>", start)])["cells"]["rows"])

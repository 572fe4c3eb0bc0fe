"""The report of ten thousand cells: small enough to send, and drawn by a real browser."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from aggregate.api import aggregate_run
from aggregate.report import write_report
from aggregate.tables import read_table, write_tables
from sparsehpc.core.layout import RunFolder

CELLS = 10_000
TABLES = ("global", "groups", "tensors", "windows", "bins", "costs", "coverage", "pareto", "tipping", "layers")

pytestmark = [pytest.mark.browser, pytest.mark.slow]


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


def test_ten_thousand_cells_open(
    large: RunFolder, monkeypatch: pytest.MonkeyPatch, open_report: Callable[..., Any]
) -> None:
    monkeypatch.setattr("aggregate.report.draw_figures", lambda run: [])
    started = time.perf_counter()
    page = write_report(large)
    written_s = time.perf_counter() - started
    assert page.stat().st_size < 25_000_000
    assert _cells_in(page) == CELLS + 1
    started = time.perf_counter()
    tab = open_report(page)
    ready_s = time.perf_counter() - started
    loaded_s = tab.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000")
    assert "10,001 cells" in tab.locator("#count").inner_text()
    for view in ("perplexity", "agreement", "size", "pareto", "promise"):
        assert tab.locator(f"#view-{view} .main-svg").count() >= 1, view
    started = time.perf_counter()
    tab.select_option("#method", "wanda")
    filtered_s = time.perf_counter() - started
    assert "2,001 cells" in tab.locator("#count").inner_text()
    sys.stdout.write(
        f"page {page.stat().st_size / 1e6:.1f} MB, written in {written_s:.1f} s; loaded {loaded_s:.1f} s, every view "
        f"drawn {ready_s:.1f} s, filtered {filtered_s:.1f} s\n"
    )


def _cells_in(page: Path) -> int:
    text = page.read_text(encoding="utf-8")
    start = text.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    return int(json.loads(text[start : text.index("</script>", start)])["cells"]["rows"])

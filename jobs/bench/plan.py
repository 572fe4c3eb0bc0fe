"""Planning and writing a study of many cells, against building the same cells and ids one by one."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from jobs.bench import Row
from jobs.plan import make_plan
from jobs.plan_file import write_plan
from jobs.study import parse_study
from sparsehpc.core.spec import Cell, Pruning, Windows, decimal_text

_STUDY = """
[study]
name = "many"
[[models]]
id = "random:opt-125m"
[grid]
methods = ["magnitude"]
sparsities = [{sparsities}]
variants = ["masked", "csr"]
[evaluation]
corpus = "samples"
windows = 40
window_tokens = 512
"""


def run(options: Mapping[str, str]) -> list[Row]:
    """Plan ``cells`` cells (default 100,000) and write plan.parquet."""
    cells = int(options.get("cells", "100000"))
    sparsities = ", ".join(f"0.{n:06d}" for n in range(1, cells // 2 + 1))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        plan = make_plan(parse_study(_STUDY.format(sparsities=sparsities), Path(folder) / "many.toml"))
        write_plan(Path(folder) / "plan.parquet", plan.cells)
        ours_s = time.perf_counter() - started
        size_bytes = (Path(folder) / "plan.parquet").stat().st_size
    started = time.perf_counter()
    identities = []
    windows = Windows(corpus="samples", windows=40, window_tokens=512)
    for n in range(len(plan.cells)):
        pruning = Pruning(method="magnitude", pattern="unstructured", sparsity=decimal_text(Decimal(n).scaleb(-6)))
        cell = Cell(model="random:opt-125m", pruning=pruning, variant="csr", evaluation=windows)
        identities.append((cell.cell_id, cell.to_json()))
    bare_s = time.perf_counter() - started
    return [
        {
            "suite": "plan",
            "work": f"read, plan and write {len(plan.cells)} cells",
            "baseline": "the bare cells, ids and JSON",
            "ratio": bare_s / ours_s,
            "seconds": ours_s,
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "plan_bytes": size_bytes,
        }
    ]

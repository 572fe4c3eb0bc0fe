"""A synthetic, deterministic run of many cells: every shard as a node would write it, whole and digested."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparsehpc.core import schema, shards
from sparsehpc.core.keys import key_row
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.spec import Cell, Pruning, Windows

_LAYERS, _TENSORS, _STRUCTURE, _BEHAVIOUR = 32, 200, 8, 29


def make_shards(root: Path, count: int, rows: int) -> RunFolder:
    """Write ``count`` shards of ``rows`` rows; those that are there already are kept."""
    run = RunFolder(root)
    cells = [_cell(number) for number in range(count)]
    plan = [{"order": number, **key_row(cell), "spec": cell.to_json()} for number, cell in enumerate(cells)]
    run.root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(plan, schema=schema.PLAN), run.plan)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_write, root, rows), range(count), chunksize=50))
    return run


def _cell(number: int) -> Cell:
    return Cell(
        model=f"random:model-{number // 1000}",
        evaluation=Windows(corpus="samples", windows=40, window_tokens=512),
        pruning=Pruning(method="magnitude", pattern="unstructured", sparsity=f"0.{number % 1000 + 1:04d}", seed=718),
        variant="masked",
    )


@lru_cache(maxsize=1)
def _text(rows: int) -> tuple[dict[str, pa.Array], np.ndarray]:
    """Every column but the figures, and which rows are ratios; the same in all shards."""
    lines: list[tuple[str, str, int | None, str, str, str, str, str]] = []
    for convention in ("unique", "study"):
        for metric in range(_STRUCTURE):
            name = f"structure_{metric}"
            lines += [
                (
                    "tensor",
                    f"model.layers.{t // 7}.mlp.p{t % 7}.weight",
                    t // 7,
                    "mlp",
                    convention,
                    name,
                    "sum",
                    "weights",
                )
                for t in range(_TENSORS)
            ]
            lines += [("layer", str(n), n, "", convention, name, "sum", "weights") for n in range(_LAYERS)]
            lines += [("group", group, None, group, convention, name, "sum", "weights") for group in schema.GROUPS]
            lines.append(("model", "model", None, "", convention, name, "sum", "weights"))
    left = max(0, rows - len(lines))
    lines += [
        ("window", str(n // _BEHAVIOUR), None, "", "", f"behaviour_{n % _BEHAVIOUR}", "ratio", "nats")
        for n in range(left)
    ]
    columns = zip(*lines[:rows], strict=True)
    names = ("scope", "subject", "layer", "group", "convention", "metric", "reduction", "unit")
    arrays = {
        name: pa.array(values, schema.MEASUREMENTS.field(name).type)
        for name, values in zip(names, columns, strict=True)
    }
    arrays["component"] = pa.array([""] * rows, pa.string())
    return arrays, np.array([line[6] == "ratio" for line in lines[:rows]])


def _write(root: Path, rows: int, number: int) -> None:
    cell = _cell(number)
    folder = RunFolder(root).cell(cell.cell_id)
    if folder.row.is_file():
        return
    text, ratio = _text(rows)
    rng = np.random.default_rng(number)
    numerator = np.where(ratio, rng.random(rows) * 500, rng.integers(0, 10**6, rows))
    denominator = np.where(ratio, rng.integers(20, 512, rows), 1).astype(float)
    table = pa.table(
        {"cell_id": pa.repeat(cell.cell_id, rows), **text, "numerator": numerator, "denominator": denominator}
    ).select(schema.MEASUREMENTS.names)
    row = {
        **key_row(cell),
        **{field.name: _blank(field) for field in schema.CELL if field.name not in schema.KEYS.names},
    }
    shards.write_table(folder, row, table.cast(schema.MEASUREMENTS))


def _blank(field: pa.Field) -> object:
    if pa.types.is_string(field.type):
        return ""
    return False if pa.types.is_boolean(field.type) else 0

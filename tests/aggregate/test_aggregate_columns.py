"""The documented columns are those of the tables, and the recipes run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aggregate.api import aggregate_run
from aggregate.columns import COLUMN_MEANINGS, TABLE_MEANINGS, tables_page
from aggregate.tables import TABLES, read_table
from sparsehpc.core import schema

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = re.findall(r"^```python\n(.*?)^```", (DOCS / "recipes.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory, synthetic) -> Path:
    """A folder with ``runs/quickstart``, as recipes expect it."""
    folder = tmp_path_factory.mktemp("recipes")
    run = synthetic.write_run(folder / "runs" / "quickstart", sparsities=("0.1", "0.3"), windows=16)
    aggregate_run(run, figures=False)
    return folder


def test_page_is_what_the_code_says():
    assert (DOCS / "tables.md").read_text(encoding="utf-8") == tables_page(), (
        "python -m aggregate.columns > docs/tables.md"
    )
    assert set(TABLE_MEANINGS) == set(TABLES)


def test_every_column_of_every_table_is_described(place, synthetic):
    from sparsehpc.core.layout import RunFolder

    run = RunFolder(place / "runs" / "quickstart")
    known = {name for names in COLUMN_MEANINGS for name in names.split(", ")} | set(schema.CELL.names)
    suffixes = ("_lo", "_hi", "_dense", "_numerator", "_denominator")
    # No cell of this run is timed.
    for table in set(TABLES) - {"latency"}:
        for column in read_table(run, table).column_names:
            name = column
            while name not in known and name.endswith(suffixes):
                name = name.rpartition("_")[0]
            assert name in known or name.startswith("bytes_total_"), (table, column)


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_recipes_run(place, number):
    done = subprocess.run(
        [sys.executable, "-c", RECIPES[number]], cwd=place, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

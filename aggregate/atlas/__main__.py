"""``python -m aggregate.atlas FOLDER [RUN...]``: make the pages of results; without runs, from the copied tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aggregate.atlas import render, write_results
from aggregate.atlas.kept import kept_runs
from aggregate.claims import judge_runs
from aggregate.claims.text import as_lines
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m aggregate.atlas", description=sys.modules[__name__].__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    given = parser.parse_args()
    try:
        runs = [RunFolder(run) for run in given.runs]
        written = write_results(given.folder, runs) if runs else render(given.folder)
        verdicts = judge_runs(list(kept_runs(given.folder / "data").values()), given.folder / "claims.toml")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("".join(f"{path}\n" for path in written))
    sys.stdout.write(f"\n{as_lines(verdicts)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m jobs``: the command line, and ``python -m jobs cell RUN CELL...``, the payload of every script."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Run cells, or the command line."""
    if sys.argv[1:2] != ["cell"]:
        from jobs.cli import main as command_line

        return command_line()
    from jobs.cell import CellJob, CellsFailed
    from sparsehpc.core.errors import UserError

    if len(sys.argv) < 4:
        raise SystemExit("usage: python -m jobs cell RUN CELL...")
    try:
        CellJob(str(Path(sys.argv[2]).absolute()), tuple(sys.argv[3:]))()
    except (UserError, CellsFailed) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, UserError) else 1) from error
    return None


if __name__ == "__main__":
    main()

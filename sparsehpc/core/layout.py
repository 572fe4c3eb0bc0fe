"""Where things lie in a run folder: the one module that knows file names.

::

    RUN/ study.toml  plan.parquet  provenance.json  inputs.json  extensions.json
         tokens/<key>.npz                      evaluation and calibration tokens, fixed when the run was made
         cells/<2 hex>/<cell_id>/              measurements.parquet, cell.parquet (the commit mark), failure.json
         submissions/<id>/                     ledger.json and what the scheduler's tools leave
         checkpoints/<walk>/                   a walk between two layers, where the study asks for it
         logs/  tables/  figures/  report/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sparsehpc.core.errors import UserError
from sparsehpc.core.spec import CELL_ID_LENGTH

_CELL_ID = re.compile(rf"[0-9a-f]{{{CELL_ID_LENGTH}}}")


def check_cell_id(cell_id: str) -> str:
    """Return ``cell_id`` if it is one; an id never leaves the run folder."""
    if not _CELL_ID.fullmatch(cell_id):
        raise UserError(
            f"{cell_id!r} is not a cell id ({CELL_ID_LENGTH} hexadecimal digits)",
            "sparsehpc status RUN --cells lists them",
        )
    return cell_id


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside one run folder."""

    root: Path

    @property
    def study(self) -> Path:
        """Copy of the study file the run was made from."""
        return self.root / "study.toml"

    @property
    def plan(self) -> Path:
        """The truth about what should exist."""
        return self.root / "plan.parquet"

    @property
    def provenance(self) -> Path:
        """Versions, commit and digests of when the run was made."""
        return self.root / "provenance.json"

    @property
    def inputs(self) -> Path:
        """Where on this machine the run's models lie, digests of its tokens, resource classes; never exported."""
        return self.root / "inputs.json"

    @property
    def extensions(self) -> Path:
        """Cells that were added to the plan after the study was planned, and why."""
        return self.root / "extensions.json"

    @property
    def tokens(self) -> Path:
        """Folder of fixed token windows."""
        return self.root / "tokens"

    @property
    def cells(self) -> Path:
        """Folder of all cells."""
        return self.root / "cells"

    @property
    def submissions(self) -> Path:
        """Folder of all submissions."""
        return self.root / "submissions"

    @property
    def checkpoints(self) -> Path:
        """Folder of walks in the middle; empty once they have ended."""
        return self.root / "checkpoints"

    @property
    def logs(self) -> Path:
        """Folder of logs."""
        return self.root / "logs"

    @property
    def tables(self) -> Path:
        """Folder of summary tables."""
        return self.root / "tables"

    @property
    def figures(self) -> Path:
        """Folder of figures."""
        return self.root / "figures"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.root / "report"

    def cell(self, cell_id: str) -> CellFolder:
        """Folder of one cell, fanned out by the first two digits."""
        check_cell_id(cell_id)
        return CellFolder(self.root.joinpath("cells", cell_id[:2], cell_id))


@dataclass(frozen=True, slots=True)
class CellFolder:
    """Paths of one cell: at most three files."""

    root: Path

    @property
    def measurements(self) -> Path:
        """Figures, long."""
        return self.root / "measurements.parquet"

    @property
    def row(self) -> Path:
        """The cell's row, written last: where it is whole, the cell is done."""
        return self.root / "cell.parquet"

    @property
    def failure(self) -> Path:
        """Why the last attempt failed; gone once the cell is done."""
        return self.root / "failure.json"

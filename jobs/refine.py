"""Measure where it matters: cells between the last sparsity within a tolerance and the first beyond it.

Every round halves the bracket of every way of pruning by one cell. State is the run itself: its plan, its shards and
the record of what was added (`jobs.extend`), so that a stopped refinement goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal

from aggregate.api import aggregate_run
from aggregate.brackets import TOLERANCES, Bracket, brackets
from aggregate.tipping import BELOW_FIRST, NO_DATA, NOT_REACHED
from jobs.extend import complete_plan, extend_plan, extra_cells
from jobs.inputs import load_inputs
from jobs.local import run_in_process, run_in_processes
from jobs.pack import CELLS_A_JOB, packs
from jobs.plan_file import read_plan
from jobs.progress import Reporter
from jobs.run import Executor, summarise
from sparsehpc.core.errors import UserError, UserErrors, unknown
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import shard_state
from sparsehpc.core.spec import Cell, decimal_text
from sparsehpc.pruning.patterns import parse_pattern

#: Cells that one way of pruning gets at most.
MOST_CELLS = 8

OPEN, NARROW, STUCK, WAITING = "open", "narrow enough", "stuck", "waiting"

Halted = Callable[[Sequence["Step"]], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What a refinement is after.

    Parameters
    ----------
    metric
        ``perplexity`` or ``top1_agreement``.
    within
        Width of a bracket that is narrow enough.
    tolerance
        Rise of perplexity, or share of equal choices, that is accepted.
    most
        Cells that one way of pruning gets at most.
    """

    metric: str
    within: Decimal
    tolerance: float
    most: int = MOST_CELLS

    @classmethod
    def parse(cls, metric: str, within: str, tolerance: float | None, most: int = MOST_CELLS) -> Wish:
        """Check what a person asks for; every problem at once."""
        problems = []
        if metric not in TOLERANCES:
            problems.append(unknown("metric", metric, TOLERANCES))
        try:
            width = Decimal(within)
        except ArithmeticError:
            width = Decimal(0)
        if not Decimal("0.0001") <= width < 1:
            problems.append(f"--within is {within}; legal: a difference of two sparsities, 0.0001 to 1, as in 0.02")
        chosen = TOLERANCES.get(metric, 0.05) if tolerance is None else tolerance
        if metric == "top1_agreement" and not 0 < chosen < 1:
            problems.append(f"--tolerance is {chosen:g}; legal: a share of equal choices between 0 and 1, as in 0.9")
        if metric == "perplexity" and not (chosen > 0 and math.isfinite(chosen)):
            problems.append(f"--tolerance is {chosen:g}; legal: a rise of perplexity above 0, as in 0.05 for +5 %")
        if problems:
            raise UserErrors("the run cannot be refined", problems)
        return cls(metric, width, chosen, most)

    def record(self) -> dict[str, object]:
        """For the run's record of what was added."""
        return {"by": "refine", "metric": self.metric, "within": str(self.within), "tolerance": self.tolerance}


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Where one way of pruning stands.

    Parameters
    ----------
    cell
        One of its cells: the first in the plan.
    answer
        Whether and where the curve leaves its tolerance, as in `aggregate.tipping.Crossing`.
    low, high
        Bracket: the largest sparsity within the tolerance (0 is dense), the smallest beyond it (1 where none is known).
    added
        Cells that refinements gave it so far.
    state
        ``open``, ``narrow enough``, ``stuck`` or ``waiting`` (a cell of an earlier round is not done).
    why
        Why it is stuck.
    wanted
        The cell to measure next; None where there is none.
    """

    cell: Cell
    answer: str
    low: Decimal
    high: Decimal
    added: int
    state: str
    why: str = ""
    wanted: Cell | None = None

    @property
    def words(self) -> str:
        """The bracket in words."""
        if self.answer == NO_DATA:
            return "no data"
        if self.answer == NOT_REACHED:
            return f"not reached up to {_percent(self.low)} %"
        below = ", below the first step that was measured" if self.answer == BELOW_FIRST else ""
        return f"between {_percent(self.low)} and {_percent(self.high)} %{below}"


def plan_round(run: RunFolder, wish: Wish) -> list[Step]:
    """Where every way of pruning stands by the tables of the run, and which cell would halve its bracket."""
    cells = {cell.cell_id: cell for cell in read_plan(run.plan)}
    added = Counter(family_of(cell) for cell in extra_cells(run))
    first: dict[Cell, Bracket] = {}
    for bracket in brackets(run, wish.metric, wish.tolerance):
        # The first variant and calibration seed that were measured stand for all: others differ by rounding or noise.
        first.setdefault(family_of(cells[bracket.cell_ids[0]]), bracket)
    if not first:
        raise UserError(
            f"no pruned cell of {run.root} is done: there is no curve to refine", f"sparsehpc status {run.root}"
        )
    return [_step(run, wish, bracket, cells, added[family]) for family, bracket in first.items()]


def refine_here(
    run: RunFolder,
    wish: Wish,
    *,
    executor: Executor = "local",
    side_by_side: int = 1,
    quiet: bool = False,
    halted: Halted | None = None,
) -> list[Step]:
    """Add and compute cells on this machine, round after round, until every bracket is narrow enough or stuck.

    Parameters
    ----------
    run
        An existing run with inputs.
    wish
        What for.
    executor, side_by_side, quiet
        As for `jobs.run.run_study`.
    halted
        Called after every round with where things stand.

    Returns
    -------
    list
        Where every way of pruning stands at the end.
    """
    run = RunFolder(run.root.absolute())
    inputs = load_inputs(run)
    complete_plan(run)
    computed = 0
    while True:
        aggregate_run(run, figures=False)
        steps = plan_round(run, wish)
        if halted is not None:
            halted(steps)
        todo = [step.wanted for step in steps if step.wanted is not None]
        if not todo:
            break
        extend_plan(run, todo, wish.record())
        with Reporter(len(todo), 0, quiet=quiet) as reporter:
            if executor == "debug":
                run_in_process(run, inputs, packs(todo, CELLS_A_JOB), reporter)
            else:
                run_in_processes(run, inputs, packs(todo, CELLS_A_JOB), reporter, side_by_side)
        computed += len(todo)
    if computed:
        summarise(run)
    return steps


def family_of(cell: Cell) -> Cell:
    """What all cells of one way of pruning have in common, as a cell."""
    calibration = cell.pruning.calibration
    draw = None if calibration is None else dataclasses.replace(calibration, seed=0)
    return dataclasses.replace(
        cell, variant="", resource="", pruning=dataclasses.replace(cell.pruning, sparsity="0", calibration=draw)
    )


def midpoint(low: Decimal, high: Decimal, within: Decimal) -> Decimal | None:
    """Middle of a bracket with as few decimals as a quarter of the wanted width needs; None where none lies inside.

    >>> midpoint(Decimal("0.3"), Decimal("0.35"), Decimal("0.02")), midpoint(Decimal(0), Decimal(1), Decimal("0.1"))
    (Decimal('0.325'), Decimal('0.50'))
    """
    places = -(within / 4).adjusted()
    middle = ((low + high) / 2).quantize(Decimal(1).scaleb(-places))
    return middle if low < middle < high else None


def _step(run: RunFolder, wish: Wish, bracket: Bracket, cells: dict[str, Cell], added: int) -> Step:
    cell = cells[bracket.cell_ids[0]]
    measured = [cells[cell_id].pruning.fraction for cell_id in bracket.cell_ids]
    low = measured[bracket.last_within - 1] if bracket.last_within else Decimal(0)
    high = measured[bracket.last_within] if bracket.last_within < len(measured) else Decimal(1)
    step = Step(cell, bracket.answer, low, high, added, OPEN)
    if parse_pattern(cell.pruning.pattern).fixed_sparsity is not None:
        return dataclasses.replace(step, state=STUCK, why=f"pattern {cell.pruning.pattern} has one sparsity only")
    if bracket.answer == NO_DATA:
        return dataclasses.replace(step, state=STUCK, why=f"{wish.metric} was not measured")
    if high - low <= wish.within:
        return dataclasses.replace(step, state=NARROW)
    middle = midpoint(low, high, wish.within)
    if middle is None:
        return dataclasses.replace(step, state=NARROW)
    wanted = dataclasses.replace(cell, pruning=dataclasses.replace(cell.pruning, sparsity=decimal_text(middle)))
    if wanted.cell_id in cells:
        found = shard_state(run.cell(wanted.cell_id), wanted.cell_id, verify=False)
        if found.state == "failed":
            why = f"its cell at {_percent(middle)} % failed: {found.reason.splitlines()[0]}"
            return dataclasses.replace(step, state=STUCK, why=why)
        return dataclasses.replace(step, state=WAITING, wanted=wanted)
    if added >= wish.most:
        return dataclasses.replace(step, state=STUCK, why=f"it has got {added} cells already (--cells)")
    return dataclasses.replace(step, wanted=wanted)


def _percent(sparsity: Decimal) -> str:
    return decimal_text(100 * sparsity)

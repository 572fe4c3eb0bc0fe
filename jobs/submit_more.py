"""Send one round of a refinement to a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.extend import complete_plan, extend_plan
from jobs.inputs import load_inputs
from jobs.price import run_prices
from jobs.propose import make_arrays, room
from jobs.refine import WAITING, Step, Wish
from jobs.submit import Report, send_arrays
from slurm.profile import Profile
from sparsehpc.core.layout import RunFolder


def submit_round(run: RunFolder, steps: Sequence[Step], wish: Wish, profile: Profile, report: Report) -> list[str]:
    """Add the cells of a round to the plan and send them; returns the jobs' ids.

    Cells of an earlier round that are not done are not sent again: ``retry`` knows the remedy for what failed, and
    ``submit`` sends what never went.
    """
    run = RunFolder(run.root.absolute())
    inputs = load_inputs(run)
    complete_plan(run)
    waiting = [step for step in steps if step.state == WAITING]
    if waiting:
        report(f"{len(waiting)} cells of an earlier round are not done: sparsehpc status {run.root}")
    wanted = [step.wanted for step in steps if step.wanted is not None and step.state != WAITING]
    if not wanted:
        return []
    limits, slots = room(profile)
    classes = {name: inputs.resource(name) for name in inputs.resources}
    cells = extend_plan(run, wanted, wish.record())
    arrays, later = make_arrays(cells, classes, profile, limits, slots, run_prices(run, inputs, cells))
    if later:
        report(f"{later} cells have to wait until there is room in the queue: submit the study again")
    return [submission.job_id for submission in send_arrays(run, arrays, profile, report)]

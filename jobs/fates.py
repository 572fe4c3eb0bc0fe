"""Where every planned cell stands: its files first, then what the scheduler and the logs say about its last task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jobs.states import cell_states
from slurm.causes import Verdict
from slurm.ledger import read_ledger
from slurm.profile import Limits
from slurm.profile_file import load_profile
from slurm.queue import Queue
from slurm.track import Place, Tracker, track
from sparsehpc.core.errors import UserError
from sparsehpc.core.layout import RunFolder

State = Literal["done", "running", "queued", "unclear", "failed", "damaged", "missing"]
#: In the order people want to read them. ``unclear``: sent, and nobody can say at the moment; ``missing``: never sent,
#: or sent and left without a trace.
STATES: tuple[State, ...] = ("done", "running", "queued", "unclear", "failed", "damaged", "missing")


class Fate(NamedTuple):
    """One cell.

    Parameters
    ----------
    state
        One of `STATES`.
    cause
        ``OOM``, ``TIME``, ``NODE``, ``CODE``, ``CANCELLED``, ``LOST`` for failed cells.
    reason
        Evidence in words.
    place
        The last task that was to compute it; None for cells that were never sent.
    """

    state: State
    cause: str = ""
    reason: str = ""
    place: Place | None = None


def queue_of(run: RunFolder) -> Queue:
    """Ask the scheduler at the pace of the profile that the last submission used, if this user has it."""
    submissions, _ = read_ledger(run)
    limits = Limits()
    if submissions and submissions[-1].profile:
        try:
            limits = load_profile(submissions[-1].profile).limits
        except UserError:
            limits = Limits()
    return Queue(run.submissions, interval_s=limits.poll_interval_s, accounting=limits.accounting)


def find_fates(
    run: RunFolder, cell_ids: Sequence[str], *, fresh: bool = False, verify: bool = False
) -> tuple[dict[str, Fate], Tracker]:
    """Fate of every cell, and what was read to know it.

    Parameters
    ----------
    run
        The run folder.
    cell_ids
        Planned cells.
    fresh
        Ask the scheduler now, even if it was asked a moment ago.
    verify
        Read every shard and compare digests.
    """
    tracker = track(run, queue_of(run), fresh=fresh)
    places = tracker.places()
    states = cell_states(run, cell_ids, verify=verify)
    verdicts: dict[tuple[str, int], Verdict] = {}
    fates = {}
    for cell_id in cell_ids:
        shard, place = states[cell_id], places.get(cell_id)
        if shard.state == "done":
            fates[cell_id] = Fate("done", place=place)
        elif place is not None and place.stand in ("running", "queued", "unclear"):
            fates[cell_id] = Fate(place.stand, reason=_words(place), place=place)
        elif shard.state == "damaged" or (shard.state == "failed" and _speaks_for(run, cell_id, place)):
            fates[cell_id] = Fate(shard.state, shard.cause, shard.reason, place)
        elif place is not None and shard.state == "missing" and place.ended_just_now(run):
            fates[cell_id] = Fate("unclear", reason="its job ended well; its shard does not show yet", place=place)
        elif place is not None:
            key = (place.submission.submission_id, place.task)
            if key not in verdicts:
                verdicts[key] = place.verdict(run)
            fates[cell_id] = Fate("failed", verdicts[key].cause, verdicts[key].evidence, place)
        else:
            fates[cell_id] = Fate(shard.state, shard.cause, shard.reason)
    return fates, tracker


def _speaks_for(run: RunFolder, cell_id: str, place: Place | None) -> bool:
    """Whether a failure record belongs to the last task: one of an earlier attempt says nothing about it."""
    if place is None:
        return True
    try:
        record = json.loads(run.cell(cell_id).failure.read_text(encoding="utf-8"))
        array = str(record.get("job_id", "")).partition("_")[0]
    except (OSError, ValueError, AttributeError):
        return True
    job_ids = {place.submission.job_id, place.state.job_id if place.state is not None else ""}
    return not array.isdigit() or array in job_ids


def _words(place: Place) -> str:
    if place.state is None:
        return "sent; the scheduler does not show it"
    waits = place.state.waiting and place.state.reason
    return f"{place.state.state}, {place.state.reason}" if waits else f"{place.state.state} {place.state.nodes}".strip()

"""Remedies by cause, packing by minutes, and states from a glance at files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.fates import find_fates
from jobs.plan_file import planned_ids
from jobs.price import Prices
from jobs.retry import remedy
from jobs.states import cell_states
from slurm import ledger
from slurm.cost import STARTUP_S, CostModel, Estimate
from slurm.profile import Limits, Profile
from slurm.resources import Resources
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.shards import write_failure
from sparsehpc.core.spec import Cell, Pruning, Windows

CLASS = Resources(memory_gib=4, minutes=20)
WINDOWS = Windows(corpus="samples", windows=1, window_tokens=8)


@pytest.mark.parametrize(
    ("cause", "memory_gib", "minutes"),
    [("OOM", 8, 20), ("TIME", 4, 30), ("NODE", 4, 20), ("LOST", 4, 20), ("CANCELLED", 4, 20), ("DAMAGED", 4, 20)],
)
def test_each_cause_has_its_remedy(cause: str, memory_gib: float, minutes: int) -> None:
    asked, why_not = remedy(cause, CLASS, CLASS, Profile())
    assert (asked.memory_gib, asked.minutes, why_not) == (memory_gib, minutes, "")


def test_remedies_add_up_and_end_at_a_cap() -> None:
    profile, asked, seen = Profile(limits=Limits(max_memory_gib=10.0)), CLASS, []
    for _ in range(5):
        asked, why_not = remedy("OOM", asked, CLASS, profile)
        seen.append(asked.memory_gib)
    assert seen == [8, 10, 10, 10, 10]
    assert "more than 10 GiB is not asked for" in why_not


def test_without_a_known_limit_eight_times_is_the_most() -> None:
    memory, minutes = CLASS, CLASS
    for _ in range(20):
        memory, minutes = (
            remedy(cause, last, CLASS, Profile())[0] for cause, last in (("OOM", memory), ("TIME", minutes))
        )
    assert (memory.memory_gib, minutes.minutes) == (32, 160)


def test_a_request_raised_by_hand_counts() -> None:
    asked, _ = remedy("LOST", CLASS, Resources(memory_gib=16, minutes=10), Profile())
    assert (asked.memory_gib, asked.minutes) == (16, 20)


def cells(prunings: int, variants: int) -> list[Cell]:
    return [
        Cell(
            model="random:tiny",
            pruning=Pruning(method="magnitude", pattern="unstructured", sparsity=f"0.{p + 1}"),
            variant=f"v{v}",
            evaluation=WINDOWS,
        )
        for p in range(prunings)
        for v in range(variants)
    ]


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> Prices:
    found = Prices({"cpu": Resources()}, {("random:tiny", None): 1}, CostModel())
    monkeypatch.setattr(found.model, "estimate", lambda work: Estimate(100.0, 10.0, 30.0, measured=True))
    return found


@pytest.mark.parametrize("target_s", [1.0, 200.0, 300.0, 1000.0, float("inf")])
@pytest.mark.parametrize("most", [1, 3, 4, 100])
def test_jobs_keep_to_the_target_and_lose_no_cell(prices: Prices, target_s: float, most: int) -> None:
    planned = cells(4, 3)
    jobs = prices.packs(planned, target_s, most)
    assert [cell for job in jobs for cell in job] == planned
    assert max(map(len, jobs)) <= most
    assert all(len(job) == 1 or prices.seconds(job) <= target_s for job in jobs)
    if target_s == float("inf") and most == 100:
        assert len(jobs) == 1
    if target_s == 300.0 and most == 100:
        # Start-up, walk, then combinations of 10 + 3 * 30 seconds: one fits whole, a second would not.
        assert prices.seconds(jobs[0]) == STARTUP_S + 100 + 100
        assert [len(job) for job in jobs] == [3, 3, 3, 3]


def test_a_glance_sees_what_is_cut_off_and_reading_sees_all(run_copy: Path) -> None:
    run = RunFolder(run_copy)
    ids = planned_ids(run.plan)
    assert {state.state for state in cell_states(run, ids).values()} == {"done"}
    flipped = run.cell(ids[0]).measurements
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut = run.cell(ids[1]).row
    cut.write_bytes(cut.read_bytes()[:-3])
    run.cell(ids[2]).measurements.unlink()
    assert [cell_states(run, ids)[cell].state for cell in ids] == ["done", "damaged", "damaged"]
    assert [cell_states(run, ids, verify=True)[cell].state for cell in ids] == ["damaged"] * 3


def test_cells_that_were_never_touched_are_missing(run_copy: Path) -> None:
    assert cell_states(RunFolder(run_copy), ["0" * 20])["0" * 20].state == "missing"


def test_a_folder_that_cannot_be_read_is_not_missing(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(run_copy)
    ids = planned_ids(run.plan)
    closed = run.cell(ids[0]).root.parent
    listed = Path.iterdir

    def refuse(self: Path) -> Any:
        if self == closed:  # root reads whatever the mode says
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = cell_states(run, ids)[ids[0]]
    assert found.state == "damaged"
    assert "Permission denied; its owner can open it: chmod -R g+rX" in found.reason


def sent(run: RunFolder, *tasks: tuple[str, ...], job_id: str) -> ledger.Submission:
    made = ledger.new_submission("run", tasks=tasks, resources={"name": "small", "memory_gib": 1.0})
    made.folder(run).mkdir(parents=True)
    ledger.record(run, made)
    return ledger.record_fate(run, made, "accepted", job_id=job_id)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Answers of squeue and sacct; both say nothing at first."""
    answers: dict[str, str | None] = {"squeue": "", "sacct": ""}
    monkeypatch.setattr("slurm.queue.Queue._squeue", _parsed(answers, "squeue"))
    monkeypatch.setattr("slurm.queue.Queue._sacct", _parsed(answers, "sacct"))
    return answers


def _parsed(answers: dict[str, str | None], name: str) -> Callable[..., Any]:
    from slurm.answers import parse_sacct, parse_squeue

    parse = {"squeue": parse_squeue, "sacct": parse_sacct}[name]

    def answer(self: object, *words: object) -> Any:
        text = answers[name]
        return None if text is None else parse(text)

    return answer


def test_a_failure_record_of_an_earlier_attempt_does_not_speak_for_the_last(
    run_copy: Path, scheduler: dict[str, str | None]
) -> None:
    run = RunFolder(run_copy)
    cell = planned_ids(run.plan)[0]
    run.cell(cell).row.unlink()
    write_failure(run.cell(cell), "CODE", "old news", job_id="1_0")
    first = sent(run, (cell,), job_id="1")
    scheduler["sacct"] = f"1_0|{first.job_name}|FAILED|1:0||3|c1\n"
    fates, _ = find_fates(run, [cell], fresh=True)
    assert (fates[cell].state, fates[cell].cause, fates[cell].reason) == ("failed", "CODE", "old news")
    second = sent(run, (cell,), job_id="2")
    scheduler["sacct"] += f"2_0|{second.job_name}|OUT_OF_MEMORY|0:125||3|c1\n"
    fates, _ = find_fates(run, [cell], fresh=True)
    assert (fates[cell].state, fates[cell].cause) == ("failed", "OOM")


def test_a_shard_that_a_network_file_system_does_not_show_yet_is_no_failure(
    run_copy: Path, scheduler: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.track.file_system", lambda path: "nfs4")
    run = RunFolder(run_copy)
    cell = planned_ids(run.plan)[0]
    run.cell(cell).row.unlink()
    made = sent(run, (cell,), job_id="1")
    scheduler["sacct"] = f"1_0|{made.job_name}|COMPLETED|0:0||3|c1\n"
    log = made.folder(run) / "1_0_0_log.err"
    log.write_text("sparsehpc task 1_0\n")
    assert find_fates(run, [cell], fresh=True)[0][cell].state == "unclear"
    with monkeypatch.context() as patch:
        patch.setattr("slurm.track.file_system", lambda path: "ext4")
        assert find_fates(run, [cell], fresh=True)[0][cell].state == "failed", (
            "a disk of this machine shows all at once"
        )
    os.utime(log, (time.time() - 300, time.time() - 300))
    fate = find_fates(run, [cell], fresh=True)[0][cell]
    assert (fate.state, fate.cause, fate.reason) == ("failed", "LOST", "it ended well but its product is not there")


def test_status_tells_causes_apart_by_class(
    run_copy: Path, scheduler: dict[str, str | None], cli: Callable[..., Any]
) -> None:
    run = RunFolder(run_copy)
    plan = pq.read_table(run.plan)
    classes = pa.array(["small" if n % 2 else "big" for n in range(len(plan))])
    pq.write_table(plan.set_column(plan.schema.get_field_index("resource"), "resource", classes), run.plan)
    ids = planned_ids(run.plan)
    for cell_id in ids:
        run.cell(cell_id).row.unlink()
    made = sent(run, *((cell_id,) for cell_id in ids), job_id="1")
    words = ("OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL")
    scheduler["sacct"] = "".join(f"1_{n}|{made.job_name}|{word}|1:0||5|c1\n" for n, word in enumerate(words))
    said = cli("status", run_copy).out
    assert "failed (big, random:model): 1 NODE, 1 OOM" in said, said
    assert "failed (small, random:model): 1 TIME" in said, said
    by_class = {
        row["class"]: row["failed_by_cause"] for row in json.loads(cli("status", run_copy, "--json").out)["classes"]
    }
    assert by_class == {"big": {"OOM": 1, "NODE": 1}, "small": {"TIME": 1}}


def test_only_the_user_who_submitted_a_job_is_sent_to_cancel_it(
    run_copy: Path, scheduler: dict[str, str | None], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = RunFolder(run_copy), list[list[str]]()
    monkeypatch.setattr("jobs.manage.ask", lambda words: asked.append(list(words)) or "")
    ids = planned_ids(run.plan)
    mine, theirs = sent(run, (ids[0],), job_id="1"), sent(run, (ids[1],), job_id="2")
    path = theirs.folder(run) / "ledger.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "uid": 54321}))
    scheduler["squeue"] = "".join(f"{item.job_id}|0|{item.job_name}|RUNNING|None|c1\n" for item in (mine, theirs))
    answer = cli("cancel", run_copy, "--yes")
    assert answer.code == 1
    assert "1 jobs cancelled" in answer.out
    assert f"{theirs.job_name} was submitted by user 54321, who alone can cancel it" in answer.err
    assert asked == [["scancel", f"--user={os.getuid()}", f"--name={mine.job_name}"]]


def test_status_says_what_it_cannot_know(
    run_copy: Path, scheduler: dict[str, str | None], cli: Callable[..., Any]
) -> None:
    run = RunFolder(run_copy)
    ids = planned_ids(run.plan)
    run.cell(ids[0]).row.unlink()
    sent(run, tuple(ids), job_id="1")
    scheduler.update(squeue=None, sacct=None)
    answer = cli("status", run_copy, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert (found["cells"]["done"], found["cells"]["unclear"]) == (2, 1)
    assert len(found["problems"]) == 2


def test_used_against_asked(run_copy: Path, scheduler: dict[str, str | None], cli: Callable[..., Any]) -> None:
    run = RunFolder(run_copy)
    ids = planned_ids(run.plan)
    made = sent(run, (ids[0],), (ids[1],), job_id="1")
    path = made.folder(run) / "ledger.json"
    resources = {"name": "small", "cpus": 1, "memory_gib": 8.0, "minutes": 60, "gpus": 0}
    path.write_text(json.dumps({**json.loads(path.read_text()), "resources": resources}))
    scheduler["sacct"] = (
        f"1_0|{made.job_name}|COMPLETED|0:0||600|c1\n1_0.0|python|COMPLETED|0:0|2G|600|c1\n"
        f"1_1|{made.job_name}|COMPLETED|0:0||1200|c1\n1_1.0|python|COMPLETED|0:0|1G|1200|c1\n"
    )
    [used] = json.loads(cli("status", run_copy, "--json").out)["usage"]
    assert used["memory_used_gib"] == 2.0
    assert (used["minutes_longest"], used["minutes_median"]) == (20.0, 15.0)
    assert used["suggestion"] == "memory_gib = 2.5, minutes = 25"


def test_verbs_about_jobs_need_a_run_and_say_what_to_do(tmp_path: Path, cli: Callable[..., Any]) -> None:
    for verb in ("retry", "cancel", "clean"):
        answer = cli(verb, tmp_path / "none", "--yes")
        assert answer.code == 2
        assert "there is no run folder" in answer.err


def test_retry_of_a_run_that_was_never_submitted_says_so(run_copy: Path, cli: Callable[..., Any]) -> None:
    answer = cli("retry", run_copy, "--yes")
    assert answer.code == 2
    assert "nothing of" in answer.err
    assert "sparsehpc submit STUDY --profile NAME" in answer.err


def test_clean_keeps_what_is_unfinished(
    run_copy: Path, scheduler: dict[str, str | None], cli: Callable[..., Any]
) -> None:
    run = RunFolder(run_copy)
    ids = planned_ids(run.plan)
    run.cell(ids[0]).row.unlink()
    failed, done = sent(run, (ids[0],), job_id="1"), sent(run, (ids[1], ids[2]), job_id="2")
    scheduler["sacct"] = "".join(
        f"{item.job_id}_0|{item.job_name}|{word}|0:0||5|c1\n"
        for item, word in ((failed, "FAILED"), (done, "COMPLETED"))
    )
    answer = cli("clean", run_copy, "--yes")
    assert answer.code == 0, answer.err
    assert failed.folder(run).exists()
    assert not done.folder(run).exists()

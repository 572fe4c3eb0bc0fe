"""Packs of shards, Dask workers in other processes, and the benchmark that compares engines."""

from __future__ import annotations

import hashlib
import os
import shutil
import time

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from aggregate import reading
from aggregate.api import aggregate_run
from aggregate.compact import compact_run, load_packs
from aggregate.reduce import chunk, combine
from aggregate.scan import done_positions, read_plan, scan
from sparsehpc.core import shards
from sparsehpc.core.errors import SparseHPCError
from sparsehpc.core.layout import RunFolder

GRID = {"sparsities": ("0.1", "0.3", "0.5"), "methods": ("magnitude", "random"), "windows": 6}


def digests(run: RunFolder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(run.tables.iterdir())}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, synthetic):
    """A run and the digests of its tables, made from shards alone."""
    run = synthetic.write_run(tmp_path_factory.mktemp("scale") / "run", **GRID)
    aggregate_run(run, figures=False)
    return run, digests(run)


@pytest.fixture
def copy(plain, tmp_path):
    shutil.copytree(plain[0].root, tmp_path / "run", copy_function=shutil.copy2)
    return RunFolder(tmp_path / "run")


def test_tables_are_the_same_from_packs(plain, copy):
    assert compact_run(copy, cells_per_pack=5) == 13
    assert len(load_packs(copy)) == 3
    # Proof that packs are read: the shards' content is broken with its size and times left alone.
    for path in copy.cells.glob("*/*/measurements.parquet"):
        stat = path.stat()
        path.write_bytes(b"\0" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    aggregate_run(copy, figures=False)
    assert digests(copy) == plain[1]


def test_packing_twice_does_nothing_and_a_new_cell_makes_a_new_pack(copy, synthetic):
    assert compact_run(copy) == 13
    names = sorted(path.name for path in (copy.root / "compact").iterdir())
    assert compact_run(copy) == 0
    assert sorted(path.name for path in (copy.root / "compact").iterdir()) == names
    cell = synthetic.cells_of("tiny", **GRID)[4]
    synthetic.write_cell(copy, cell, synthetic.TINY)
    assert load_packs(copy) == []
    assert compact_run(copy) == 13
    assert len(list((copy.root / "compact").iterdir())) == 2


def test_a_pack_whose_cell_was_damaged_since_does_not_count(plain, copy):
    compact_run(copy)
    cell = read_plan(copy)["cell_id"][2].as_py()
    content = bytearray(copy.cell(cell).measurements.read_bytes())
    content[50] ^= 1
    copy.cell(cell).measurements.write_bytes(content)
    coverage = aggregate_run(copy, figures=False)
    assert coverage.counts["damaged"] == 1


@pytest.mark.parametrize("broken", ["figures", "mark", "half"])
def test_a_broken_pack_costs_time_not_truth(plain, copy, broken):
    compact_run(copy)
    suffix = ".measurements.parquet" if broken == "figures" else ".cells.parquet"
    (path,) = (copy.root / "compact").glob(f"*{suffix}")
    if broken == "half":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    aggregate_run(copy, figures=False)
    assert digests(copy) == plain[1]
    compact_run(copy)
    aggregate_run(copy, figures=False)
    assert digests(copy) == plain[1]


def test_deleting_packs_loses_nothing(plain, copy):
    aggregate_run(copy, figures=False, compact=True)
    assert digests(copy) == plain[1]
    shutil.rmtree(copy.root / "compact")
    aggregate_run(copy, figures=False)
    assert digests(copy) == plain[1]


def test_text_of_equal_shards_is_worked_out_once(plain, monkeypatch):
    run = plain[0]
    coverage = scan(run)
    monkeypatch.setattr(reading, "_pivots", {})
    made = []
    real = reading.Pivot
    monkeypatch.setattr(reading, "Pivot", lambda *words: made.append(1) or real(*words))
    cells = [(position, coverage.rows[position]) for position in done_positions(coverage)]
    first = chunk(run, cells)
    # Masked and csr store other arrays, and dense has its floor; sparsities and methods do not matter.
    assert len(made) == 3
    assert combine([chunk(run, [cell]) for cell in cells]).wide.keys() == first.wide.keys()
    assert len(made) == 3


def test_a_new_metric_in_one_shard_is_seen(tmp_path, plain, copy, synthetic):
    """The text of a shard decides, not its neighbour's."""
    cell_id = read_plan(copy)["cell_id"][3].as_py()
    row = shards.read_row(copy.cell(cell_id), cell_id)
    table = shards.read_measurements(copy.cell(cell_id), row).to_pylist()
    rows = [shards.Measurement(**{k: v for k, v in line.items() if k != "cell_id"}) for line in table]
    rows = [r._replace(metric="cosine") if r.metric == "mean_rank" else r for r in rows]
    shards.write_shard(copy.cell(cell_id), row, rows)
    aggregate_run(copy, figures=False)
    from aggregate.tables import read_table

    frame = read_table(copy, "global").to_pandas().set_index("cell_id")
    assert frame.loc[cell_id, "cosine"].notna().all()
    assert frame.drop(cell_id)["cosine"].isna().all()


@pytest.mark.slow
def test_two_worker_processes_and_one_killed_in_the_middle(plain, copy):
    """Dask distributed gives the same bytes, also where a worker dies: its tasks run again elsewhere."""
    distributed = pytest.importorskip("distributed")
    import warnings

    def slow_down(seconds):
        """Let every task of this worker process take longer; a new process is as fast as ever."""
        import time

        import aggregate.reduce

        real = aggregate.reduce._reduced
        aggregate.reduce._reduced = lambda *given: (time.sleep(seconds), real(*given))[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            aggregate_run(copy, figures=False, shards_per_task=2, scheduler=client.get)
            assert digests(copy) == plain[1]
            # Every task now takes a while, so that a kill finds some done, some in work and some waiting.
            client.run(slow_down, 0.3)
            pids = client.run(os.getpid)
            seen = {}

            def killing_get(graph, keys, **words):
                future = client.get(graph, keys, sync=False, **words)
                until = time.monotonic() + 60
                while not any(client.has_what().values()) and time.monotonic() < until:
                    time.sleep(0.02)
                victim, results = max(client.has_what().items(), key=lambda item: len(item[1]))
                seen.update(held=list(results), open=client.processing())
                os.kill(pids[victim], 9)
                answer = client.gather(future)
                seen["pids"] = client.run(os.getpid)
                return answer

            aggregate_run(copy, figures=False, shards_per_task=1, scheduler=killing_get)
            # The killed worker held results, which were lost with it, and others were still to be made.
            assert seen["held"]
            assert sum(map(len, seen["open"].values())) > 0
            # Another process took its place, or the other worker did all the rest.
            assert set(seen["pids"].values()) != set(pids.values())
            assert digests(copy) == plain[1]


@pytest.mark.slow
def test_the_benchmark_compares_equal_results(tmp_path):
    """All engines agree on both sources, and a figure that differs is an error."""
    from jobs.bench import aggregate, run_suite

    folder = tmp_path / "bench"
    rows = run_suite("aggregate", {"shards": "6", "rows": "5000", "folder": str(folder)})
    assert [(row["baseline"].split()[0], row["work"].split()[-1]) for row in rows] == [
        (engine, source) for source in ("shards", "compacted") for engine in ("pandas", "polars", "duckdb")
    ]
    assert all(row["ratio"] > 0 and row["ours_peak_gib"] > 0 for row in rows)
    table = pq.read_table(folder / "polars.parquet")
    place = table.column_names.index("value")
    for changed in (pc.add(table["value"], 1.0), pc.multiply(table["value"], 1 + 1e-11)):
        pq.write_table(table.set_column(place, "value", changed), folder / "polars.parquet")
        with pytest.raises(SparseHPCError, match="polars and ours differ in"):
            aggregate._check_equal(folder, "polars")
    pq.write_table(table.slice(1), folder / "polars.parquet")
    with pytest.raises(SparseHPCError, match="figures"):
        aggregate._check_equal(folder, "polars")

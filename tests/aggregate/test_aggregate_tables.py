"""Tables against plain pandas; any partitioning, any order of rows, damaged and missing shards."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aggregate.api import aggregate_run
from aggregate.pivot import pivot
from aggregate.reduce import combine, reduce_shards
from aggregate.scan import done_positions, read_plan, scan
from aggregate.tables import GLOBAL_COLUMNS, KEYS, STRUCTURE_COLUMNS, TABLES, read_table
from sparsehpc.core import schema, shards
from sparsehpc.core.errors import SparseHPCError, UserError
from sparsehpc.core.layout import RunFolder
from sparsehpc.core.schema import Measurement


def digests(run: RunFolder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(run.tables.iterdir())}


def long_rows(run: RunFolder) -> pd.DataFrame:
    return pd.concat(pq.read_table(path).to_pandas() for path in sorted(run.cells.glob("*/*/measurements.parquet")))


def by_hand(rows: pd.DataFrame, keys: list[str]) -> pd.Series:
    """The definition of every reduction, in plain pandas, one group after the other."""

    def value(group: pd.DataFrame) -> float:
        how = group["reduction"].iloc[0]
        top, bottom = group["numerator"], group["denominator"]
        return {
            "sum": lambda: top.sum(),
            "ratio": lambda: top.sum() / bottom.sum(),
            "exp_ratio": lambda: np.exp(top.sum() / bottom.sum()),
            "max": lambda: (top / bottom).max(),
            "mean": lambda: (top / bottom).mean(),
        }[how]()

    return pd.Series({key: value(group) for key, group in rows.groupby(keys, dropna=False)})


def test_every_figure_of_every_table_against_pandas(make_run):
    run = make_run(sparsities=("0.3", "0.5"), windows=5)
    coverage = aggregate_run(run, figures=False)
    assert coverage.complete
    rows = long_rows(run)
    checked = 0
    for table, scope, subject in (
        ("global", "model", None),
        ("groups", "group", "group"),
        ("layers", "layer", "layer"),
        ("tensors", "tensor", "tensor"),
        ("windows", "window", "window"),
    ):
        found = read_table(run, table).to_pandas()
        source = rows[rows["scope"] == scope]
        if scope == "model":
            own = set(source["metric"])
            windows = rows[(rows["scope"] == "window") & ~rows["metric"].isin(own)]
            source = pd.concat([source, windows.assign(subject="model")])
        expected = by_hand(source, ["cell_id", "subject", "convention", "metric"])
        for (cell, name, convention, metric), value in expected.items():
            line = found[found["cell_id"] == cell]
            if subject:
                line = line[line[subject].astype(str) == name]
            if convention:
                line = line[line["convention"] == convention]
            assert len(line) >= 1
            assert np.allclose(line[metric].to_numpy(float), value, rtol=1e-12, atol=0), (table, name, metric)
            checked += 1
    assert checked > 2500


def test_global_has_its_columns_and_a_row_per_cell_and_convention(make_run, synthetic):
    run = make_run(sparsities=("0.3",), windows=4)
    aggregate_run(run, figures=False)
    table = pd.read_csv(run.tables / "global.csv")
    must = {*KEYS, "convention", "trained", "cell_id"}
    assert must | set(GLOBAL_COLUMNS) <= set(table.columns)
    assert table.groupby("cell_id")["convention"].apply(list).map(tuple).unique().tolist() == [("unique", "study")]
    dense = table[table["variant"] == "dense"]
    assert set(zip(dense["method"], dense["pattern"], dense["sparsity_target"], strict=True)) == {("none", "none", 0.0)}
    assert (table["top1_agreement"].notna() & table["kl"].notna()).all()
    csr = table[table["variant"] == "csr"].set_index("convention")
    assert csr.loc["study", "bytes_total"] < csr.loc["unique", "bytes_total"]
    assert csr.loc["study", "perplexity"] == csr.loc["unique", "perplexity"]
    # A count of bytes is written as one, not as 1.23e8.
    assert pq.read_schema(run.tables / "global.parquet").field("bytes_total").type == pa.int64()
    parts = [name for name in table.columns if name.startswith("bytes_total_")]
    assert np.allclose(table[parts].sum(axis=1), table["bytes_total"])
    groups = pd.read_csv(run.tables / "groups.csv")
    assert {"group", *STRUCTURE_COLUMNS} <= set(groups.columns)
    # Nothing was timed.
    assert set(TABLES) - {"latency"} == {path.stem for path in run.tables.glob("*.csv")}


def test_csv_and_parquet_say_the_same(make_run):
    run = make_run(sparsities=("0.3",), windows=4)
    aggregate_run(run, figures=False)
    for path in run.tables.glob("*.parquet"):
        left = pq.read_table(path).to_pandas()
        right = pd.read_csv(path.with_suffix(".csv"), keep_default_na=False, na_values=[""])
        assert list(left.columns) == list(right.columns)
        for name in left.select_dtypes("number").columns:
            np.testing.assert_array_equal(left[name].to_numpy(float), right[name].to_numpy(float), err_msg=name)


@pytest.mark.parametrize("shards_per_task", [1, 2, 3, 7, 1000])
def test_any_partitioning_gives_the_same_bytes(make_run, shards_per_task):
    run = make_run(sparsities=("0.1", "0.3", "0.5"), windows=6)
    aggregate_run(run, figures=False, shards_per_task=4)
    first = digests(run)
    aggregate_run(run, figures=False, shards_per_task=shards_per_task, scheduler="synchronous")
    assert digests(run) == first


def test_order_of_rows_in_a_shard_changes_no_bit(tmp_path, synthetic):
    """Float addition does not associate; the sums must not depend on where a row lies all the same."""
    cells = synthetic.cells_of("tiny", sparsities=("0.3",), windows=30)
    found = []
    for number, rng in enumerate((None, np.random.default_rng(1), np.random.default_rng(2))):
        run = RunFolder(tmp_path / str(number))
        synthetic.write_plan(run, cells)
        for cell in cells:
            rows = synthetic.structure_rows(cell, synthetic.TINY) + synthetic.window_rows(cell, synthetic.TINY, 30)
            if rng is not None:
                rng.shuffle(rows)
                rows = [Measurement(*row) for row in rows] if not isinstance(rows[0], Measurement) else rows
            shards.write_shard(run.cell(cell.cell_id), synthetic.cell_row(cell, synthetic.TINY), rows)
        aggregate_run(run, figures=False)
        tables = digests(run)
        # The costs table holds no digest or time of writing either.
        found.append(tables)
    assert found[0] == found[1] == found[2]


def test_reductions_on_rows_made_to_round():
    """Sum of 1e16 and many small numbers: sorted first, so equal for every permutation."""
    values = [1e16, 1.25, 1.25, -1e16, 3.1, 0.1]
    tables = []
    for order in itertools.islice(itertools.permutations(values), 0, 720, 37):
        rows = [Measurement("model", "model", "m", value, 1.0, "sum") for value in order]
        rows += [Measurement("model", "model", "mean", value, 3.0, "mean") for value in order]
        rows += [Measurement("model", "model", "max", value, 2.0, "max") for value in order]
        tables.append(pivot(shards.measurements_table("a" * 20, rows))["model"].to_pylist())
    assert all(table == tables[0] for table in tables)
    assert tables[0][0]["max"] == 5e15
    assert tables[0][0]["mean"] == pytest.approx(np.mean(np.array(values) / 3), abs=0.5)


def test_zero_of_zero_is_empty_not_zero():
    rows = [Measurement("model", "model", "r", 0.0, 0.0, "ratio"), Measurement("model", "model", "s", 0.0)]
    (line,) = pivot(shards.measurements_table("a" * 20, rows))["model"].to_pylist()
    assert line["r"] is None
    assert line["s"] == 0.0


def test_a_new_metric_becomes_a_column(tmp_path, synthetic):
    run = RunFolder(tmp_path / "run")
    cells = synthetic.cells_of("tiny", sparsities=("0.3",), windows=3)
    synthetic.write_plan(run, cells)
    for cell in cells:
        rows = synthetic.structure_rows(cell, synthetic.TINY)
        if not cell.is_dense:
            rows += [Measurement("window", str(n), "surprise", 2.0 + n, 2.0, "ratio", "nats") for n in range(3)] + [
                Measurement("bin", "0-127", "agreement_by_position", 3.0, 4.0, "ratio")
            ]
        shards.write_shard(run.cell(cell.cell_id), synthetic.cell_row(cell, synthetic.TINY), rows)
    aggregate_run(run, figures=False)
    table = read_table(run, "global")
    assert table.schema.field("surprise").metadata[b"unit"] == b"nats"
    frame = table.to_pandas()
    assert frame.loc[frame["variant"] == "dense", "surprise"].isna().all()
    assert (frame.loc[frame["variant"] != "dense", "surprise"] == 1.5).all()
    bins = read_table(run, "bins").to_pandas()
    assert set(bins["bin"]) == {"0-127"}
    assert (bins["agreement_by_position_denominator"] == 4).all()


def test_a_metric_that_combines_in_two_ways_is_an_error(tmp_path, synthetic):
    run = RunFolder(tmp_path / "run")
    cells = synthetic.cells_of("tiny", sparsities=("0.3",), windows=3)
    synthetic.write_plan(run, cells)
    for number, cell in enumerate(cells):
        row = Measurement("model", "model", "speed", 1.0, 2.0, "ratio" if number else "mean")
        shards.write_shard(run.cell(cell.cell_id), synthetic.cell_row(cell, synthetic.TINY), [row])
    for size in (1, 100):
        with pytest.raises(SparseHPCError, match=r"'speed' combines in two ways"):
            aggregate_run(run, figures=False, shards_per_task=size)


def test_coverage_of_damaged_failed_and_missing_shards(make_run, synthetic):
    run = make_run(sparsities=("0.1", "0.2", "0.3", "0.5"), windows=4)
    whole = aggregate_run(run, figures=False)
    folders = [run.cell(cell_id) for cell_id in whole.cell_ids]
    flipped, cut, gone, failed, other, no_figures = folders[1:7]
    content = bytearray(flipped.measurements.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.measurements.write_bytes(content)
    cut.row.write_bytes(cut.row.read_bytes()[:-20])
    gone.row.unlink()
    failed.row.unlink()
    shards.write_failure(failed, "OOM", f"killed in {run.root}/cells: 9 GiB")
    pq.write_table(pa.table({"cell_id": ["x"]}), other.measurements)
    no_figures.measurements.unlink()

    for verify in (True, False):
        seen = scan(run, verify=verify)
        assert [state.state for state in seen.states[2:5]] == ["damaged", "missing", "failed"]
    coverage = aggregate_run(run, figures=False)
    assert coverage.counts == {"expected": 9, "done": 3, "failed": 1, "damaged": 4, "missing": 1}
    table = read_table(run, "coverage").to_pandas().set_index("cell_id")
    assert table.loc[whole.cell_ids[1], "reason"].endswith("does not match its digest")
    assert table.loc[whole.cell_ids[4], ["state", "cause"]].tolist() == ["failed", "OOM"]
    assert not table["reason"].str.contains(str(run.root), regex=False).any()
    done = set(table[table["state"] == "done"].index)
    assert len(done) == 3
    for name in ("global", "groups", "layers", "tensors", "windows", "costs"):
        assert set(read_table(run, name).to_pandas()["cell_id"]) == done


def test_a_shard_of_another_schema_is_named_not_counted(make_run):
    run = make_run(sparsities=("0.3",), windows=4)
    plan = read_plan(run)
    folder = run.cell(str(plan["cell_id"][1]))
    table = pq.read_table(folder.measurements)
    wrong = table.set_column(table.schema.get_field_index("numerator"), "numerator", table["numerator"].cast("float32"))
    pq.write_table(wrong, folder.measurements)
    row = shards.read_row(folder, str(plan["cell_id"][1]))
    row["measurements_sha256"] = hashlib.sha256(folder.measurements.read_bytes()).hexdigest()
    reduced = reduce_shards(run, [1], [row])
    assert "numerator" in reduced.damage[1]
    assert "float" in reduced.damage[1]


def test_an_empty_run_and_no_run(tmp_path, synthetic):
    with pytest.raises(UserError, match=r"not a run folder.*plan\.parquet"):
        aggregate_run(RunFolder(tmp_path / "nowhere"))
    run = RunFolder(tmp_path / "planned")
    synthetic.write_plan(run, synthetic.cells_of("tiny", sparsities=("0.3",)))
    coverage = aggregate_run(run)
    assert coverage.counts == {"expected": 3, "done": 0, "failed": 0, "damaged": 0, "missing": 3}
    assert read_table(run, "global").num_rows == 0
    assert set(GLOBAL_COLUMNS) <= set(read_table(run, "global").column_names)
    run.plan.write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read"):
        aggregate_run(run)
    pq.write_table(pa.table({"cell_id": ["x"]}), run.plan)
    with pytest.raises(UserError, match="schema version"):
        aggregate_run(run)


def test_deleting_what_was_made_loses_nothing(make_run):
    run = make_run(sparsities=("0.3",), windows=4)
    aggregate_run(run, figures=False)
    first = digests(run)
    for path in run.tables.iterdir():
        path.unlink()
    aggregate_run(run, figures=False)
    assert digests(run) == first


def test_reading_a_table_that_is_not_there(make_run):
    run = make_run(sparsities=("0.3",), windows=2)
    with pytest.raises(UserError, match="sparsehpc aggregate"):
        read_table(run, "global")


def test_combining_nothing():
    reduced = combine([])
    assert reduced.wide == {}
    assert reduced.kinds == {}


def test_done_positions_follow_the_plan(make_run):
    run = make_run(sparsities=("0.3",), windows=2)
    coverage = scan(run)
    assert list(done_positions(coverage)) == [0, 1, 2]
    assert coverage.plan.schema.names == schema.PLAN.names

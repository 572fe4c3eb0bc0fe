"""Plans: order, what is dropped and why, ids that never move."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.plan import Plan, make_plan
from jobs.study import parse_study
from sparsehpc.core.errors import UserErrors
from sparsehpc.core.keys import key_row
from sparsehpc.core.spec import Cell, Pruning, Windows

HEAD = '[study]\nname = "p"\nseed = 718\n[[models]]\nid = "random:opt-125m"\n'
TAIL = '[evaluation]\ncorpus = "samples"\nwindows = 40\nwindow_tokens = 512\n'
CALIBRATION = '[calibration]\ncorpus = "python-docs"\nwindows = 4\nwindow_tokens = 512\nseeds = [0, 3]\n'


def plan_of(grid: str, tail: str = TAIL, head: str = HEAD) -> Plan:
    return make_plan(parse_study(head + grid + tail, Path("p.toml")))


def keys(plan: Plan) -> list[tuple[str, str, str, str]]:
    return [(c.pruning.method, c.pruning.pattern, c.pruning.sparsity, c.variant) for c in plan.cells]


def test_dense_comes_first_and_variants_of_a_combination_are_neighbours() -> None:
    plan = plan_of(
        '[grid]\nmethods = ["magnitude", "random"]\nsparsities = [0.3, 0.50]\nvariants = ["masked", "csr"]\n'
    )
    assert keys(plan) == [
        ("none", "none", "0", "dense"),
        ("magnitude", "unstructured", "0.3", "masked"),
        ("magnitude", "unstructured", "0.3", "csr"),
        ("magnitude", "unstructured", "0.5", "masked"),
        ("magnitude", "unstructured", "0.5", "csr"),
        ("random", "unstructured", "0.3", "masked"),
        ("random", "unstructured", "0.3", "csr"),
        ("random", "unstructured", "0.5", "masked"),
        ("random", "unstructured", "0.5", "csr"),
    ]
    assert plan.dropped == ()


def test_each_model_has_its_own_dense_cell() -> None:
    head = HEAD + '[[models]]\nid = "random:pythia-70m"\ndtype = "bfloat16"\n'
    plan = plan_of('[grid]\nmethods = ["random"]\nsparsities = [0.3]\nvariants = ["csr"]\n', head=head)
    assert [(c.model, c.dtype, c.variant) for c in plan.cells] == [
        ("random:opt-125m", "float32", "dense"),
        ("random:opt-125m", "float32", "csr"),
        ("random:pythia-70m", "bfloat16", "dense"),
        ("random:pythia-70m", "bfloat16", "csr"),
    ]


def test_grids_are_united_and_stay_adjacent() -> None:
    plan = plan_of(
        '[[grid]]\nmethods = ["magnitude"]\nsparsities = [0.3, 0.5]\nvariants = ["masked"]\n'
        '[[grid]]\nmethods = ["magnitude"]\nsparsities = [0.3]\nvariants = ["csr"]\n'
    )
    assert keys(plan)[1:] == [
        ("magnitude", "unstructured", "0.3", "masked"),
        ("magnitude", "unstructured", "0.3", "csr"),
        ("magnitude", "unstructured", "0.5", "masked"),
    ]


def test_cells_that_two_grids_share_are_an_error() -> None:
    with pytest.raises(UserErrors) as caught:
        plan_of(
            '[[grid]]\nmethods = ["magnitude"]\nsparsities = [0.3, 0.5]\nvariants = ["masked"]\n'
            '[[grid]]\nmethods = ["magnitude"]\nsparsities = [0.5]\nvariants = ["masked"]\n'
        )
    (problem,) = caught.value.problems
    assert problem.startswith(
        "grid[2]: the cell magnitude unstructured 0.5 masked of random:opt-125m is already planned"
    )


def test_an_option_written_at_its_default_is_the_same_cell() -> None:
    """Two tables that differ only in saying a default aloud plan the same cell twice."""
    grid = '[[grid]]\nmethods = ["magnitude"]\nsparsities = [0.5]\nvariants = ["masked"]\n'
    with pytest.raises(UserErrors, match="already planned"):
        plan_of(grid + grid + 'tie_rule = "index"\n')
    plan = plan_of(grid + grid + 'tie_rule = "threshold"\n')
    assert [c.pruning.options for c in plan.cells[1:]] == [(), (("tie_rule", "threshold"),)]


def test_the_same_model_twice_is_an_error() -> None:
    with pytest.raises(UserErrors, match=r"random:opt-125m dense is planned twice"):
        plan_of(
            '[grid]\nmethods = ["random"]\nsparsities = [0.3]\nvariants = ["csr"]\n',
            head=HEAD + '[[models]]\nid = "random:opt-125m"\n',
        )


def test_resource_class_does_not_make_another_cell_but_the_device_does() -> None:
    resources = "[resources.cpu]\n[resources.big]\ncpus = 8\n[resources.gpu]\ngpus = 1\n"
    grid = '[grid]\nmethods = ["random"]\nsparsities = [0.3]\nvariants = ["csr"]\n'
    with pytest.raises(UserErrors, match="planned twice"):
        plan_of(grid, TAIL + resources, HEAD + '[[models]]\nid = "random:opt-125m"\nresource = "big"\n')
    plan = plan_of(grid, TAIL + resources, HEAD + '[[models]]\nid = "random:opt-125m"\nresource = "gpu"\n')
    assert [c.device for c in plan.cells] == ["cpu", "cpu", "cuda", "cuda"]


def test_a_variant_without_a_kernel_on_the_device_is_dropped_with_the_reason() -> None:
    resources = "[resources.cpu]\n[resources.gpu]\ngpus = 1\n"
    grid = '[grid]\nmethods = ["random"]\nsparsities = [0.3]\nvariants = ["csr", "bitmap", "masked"]\n'
    plan = plan_of(grid, TAIL + resources, HEAD + 'resource = "gpu"\n')
    assert [key[-1] for key in keys(plan)] == ["dense", "csr", "masked"]
    (dropped,) = plan.dropped
    assert (dropped.variant, dropped.reason) == ("bitmap", "bitmap has kernels for cpu only, not for cuda")


def test_a_pattern_that_keeps_n_of_m_gives_one_cell_whatever_the_sparsities() -> None:
    plan = plan_of(
        '[grid]\nmethods = ["magnitude"]\npatterns = ["2:4", "1:4"]\nsparsities = [0.1, 0.9]\nvariants = ["masked"]\n'
    )
    assert keys(plan)[1:] == [("magnitude", "2:4", "0.5", "masked"), ("magnitude", "1:4", "0.75", "masked")]


def test_a_pattern_a_method_cannot_make_is_dropped_with_the_reason() -> None:
    plan = plan_of(
        '[grid]\nmethods = ["magnitude", "magnitude-rowwise"]\npatterns = ["unstructured", "2:4"]\n'
        'sparsities = [0.3, 0.5]\nvariants = ["masked", "csr"]\n'
    )
    (dropped,) = plan.dropped
    assert (dropped.method, dropped.pattern, dropped.variant, dropped.cells) == ("magnitude-rowwise", "2:4", "", 2)
    assert dropped.reason == "magnitude-rowwise cannot make pattern 2:4; it makes unstructured"
    assert ("magnitude-rowwise", "2:4", "0.5", "masked") not in keys(plan)


def test_a_variant_that_cannot_store_a_pattern_is_dropped_with_the_reason() -> None:
    plan = plan_of('[grid]\nmethods = ["magnitude"]\nsparsities = [0.3, 0.5]\nvariants = ["masked", "nm"]\n')
    (dropped,) = plan.dropped
    assert (dropped.variant, dropped.cells) == ("nm", 2)
    assert "nm" in dropped.reason or "N" in dropped.reason
    assert all(cell.variant != "nm" for cell in plan.cells)


def test_a_pattern_that_does_not_divide_a_width_is_dropped_with_the_tensor(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 1,'
        ' "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 512}'
    )
    text = HEAD.replace("random:opt-125m", "random:odd") + (
        '[grid]\nmethods = ["magnitude"]\npatterns = ["2:4", "unstructured"]\n'
        'sparsities = [0.5]\nvariants = ["masked"]\n'
    )
    plan = make_plan(parse_study(text + TAIL, tmp_path / "p.toml"))
    assert keys(plan)[1:] == [("magnitude", "unstructured", "0.5", "masked")]
    (dropped,) = plan.dropped
    assert "down_proj" in dropped.reason
    assert "4" in dropped.reason


IMPOSSIBLE = {
    "an empty layer is not the same as none": ("block-influence", 'patterns = ["layers"]\nsparsities = [0.2]'),
    "leaves none of the 16 heads": ("wanda", 'patterns = ["heads"]\nsparsities = [1.0]'),
    "more than all of a layer": ("sparsegpt", 'allocation = "owl"\nsparsities = [0.9]'),
    "targets lack mlp": ("wanda", 'patterns = ["neurons"]\ntargets = ["attention"]\nsparsities = [0.5]'),
    "wanda needs the inputs of what it prunes, and .*embed_tokens.weight is looked up": (
        "wanda",
        'targets = ["attention", "mlp", "embedding"]\nsparsities = [0.5]',
    ),
    "magnitude with refit needs the inputs": (
        "magnitude",
        'targets = ["embedding"]\nrefit = true\nsparsities = [0.5]',
    ),
    "flap has no refit": ("flap", 'patterns = ["heads"]\nrefit = true\nsparsities = [0.5]'),
}


@pytest.mark.parametrize("reason", IMPOSSIBLE)
def test_a_study_of_nothing_that_can_be_fails_with_the_reason(reason: str) -> None:
    method, axes = IMPOSSIBLE[reason]
    # Post-norm: what an empty layer passes on is still normalised.
    head, tail = HEAD.replace("opt-125m", "opt-350m"), TAIL + CALIBRATION.replace("[0, 3]", "[0]")
    grid = f'[[grid]]\nmethods = ["{method}"]\n{axes}\nvariants = ["masked"]\n'
    with pytest.raises(UserErrors, match=f"nothing is left to prune: {method} .*{reason}"):
        plan_of(grid, tail, head)
    # Beside something that can be it is left out, and listed.
    more = '[[grid]]\nmethods = ["magnitude"]\nsparsities = [0.5]\nvariants = ["masked"]\n'
    plan = plan_of(grid + more, tail, head)
    assert re.search(reason, plan.dropped[0].reason)
    assert keys(plan)[1:] == [("magnitude", "unstructured", "0.5", "masked")]


def test_only_methods_that_learn_have_calibration_seeds() -> None:
    plan = plan_of(
        '[grid]\nmethods = ["magnitude", "wanda"]\nsparsities = [0.5]\nvariants = ["masked"]\n', TAIL + CALIBRATION
    )
    draws = [(c.pruning.method, c.pruning.calibration and c.pruning.calibration.seed) for c in plan.cells]
    assert draws == [("none", None), ("magnitude", None), ("wanda", 0), ("wanda", 3)]


def test_dense_references_are_planned_once_a_model() -> None:
    plan = plan_of(
        '[grid]\nmethods = ["magnitude"]\nsparsities = [0.3, 0.5]\nvariants = ["dense", "dense-int8", "masked"]\n'
    )
    assert [c.variant for c in plan.cells] == ["dense", "dense-int8", "masked", "masked"]
    assert plan.cells[1].pruning.is_dense


def test_options_reach_only_the_methods_that_have_them() -> None:
    plan = plan_of(
        '[grid]\nmethods = ["magnitude", "random"]\nsparsities = [0.5]\nvariants = ["csr"]\n'
        'tie_rule = ["index", "threshold"]\n'
    )
    assert [(c.pruning.method, c.pruning.options) for c in plan.cells[1:]] == [
        ("magnitude", ()),
        ("magnitude", (("tie_rule", "threshold"),)),
        ("random", ()),
    ]


def test_targets_are_part_of_the_cell() -> None:
    plan = plan_of('[grid]\nmethods = ["magnitude"]\nsparsities = [0.5]\nvariants = ["csr"]\ntargets = ["mlp"]\n')
    assert plan.cells[1].pruning.targets == ("mlp",)


GOLDEN_IDS = {
    "dense": "b7d6e7d3435743400ea1",
    "masked": "9c4e794fc886721e807e",
    "csr": "29d9359f281d59a5e89a",
}


def test_ids_never_move() -> None:
    """Ids of the cells everyone has; an axis that is added with a default must leave them as they are."""
    plan = plan_of('[grid]\nmethods = ["magnitude"]\nsparsities = [0.3]\nvariants = ["masked", "csr"]\n')
    assert {cell.variant: cell.cell_id for cell in plan.cells} == GOLDEN_IDS


def test_every_axis_at_its_default_leaves_the_ids() -> None:
    grid = '[grid]\nmethods = ["magnitude"]\nsparsities = [0.3]\nvariants = ["masked", "csr"]\n'
    aloud = 'patterns = ["unstructured"]\nallocation = "default"\ntargets = ["attention", "mlp"]\nrefit = false\n'
    aloud += "true_sequential = false\n"
    assert [c.cell_id for c in plan_of(grid).cells] == [c.cell_id for c in plan_of(grid + aloud).cells]
    assert [c.cell_id for c in plan_of(grid).cells] == [c.cell_id for c in plan_of(grid, TAIL + CALIBRATION).cells]


def test_everything_that_decides_a_result_decides_the_id() -> None:
    grid = '[grid]\nmethods = ["wanda"]\nsparsities = [0.3]\nvariants = ["csr"]\n'
    base = HEAD + grid + TAIL + CALIBRATION
    changes = [
        ("", ""), ("seed = 718", "seed = 719"), ("0.3", "0.31"), ("windows = 40", "windows = 39"),
        ("= 4\n", "= 5\n"), ("window_tokens = 512", "window_tokens = 256"), ('"csr"', '"masked"'),
        ('"wanda"', '"ria"'), ('id = "random:opt-125m"', 'dtype = "float16"\nid = "random:opt-125m"'),
        ("random:opt-125m", "random:opt-350m"), ("[0, 3]", "[1, 3]"), ("variants", 'targets = ["mlp"]\nvariants'),
        ("variants", "true_sequential = true\nvariants"), ("variants", "refit = true\nvariants"),
    ]  # fmt: skip
    ids = [make_plan(parse_study(base.replace(*change, 1), Path("p.toml"))).cells[-2].cell_id for change in changes]
    assert len(set(ids)) == len(ids)


def test_a_cell_reads_back_from_its_json() -> None:
    plan = plan_of(
        '[grid]\nmethods = ["magnitude", "wanda"]\nsparsities = [0.5]\nvariants = ["csr"]\ntie_rule = "threshold"\n',
        TAIL + CALIBRATION,
    )
    for cell in plan.cells:
        again = Cell.from_json(cell.to_json())
        assert again == cell
        assert again.cell_id == cell.cell_id


def test_a_field_added_with_a_default_would_leave_the_id() -> None:
    """The rule behind `test_ids_never_move`, on the identity itself: defaults are not in it."""
    windows = Windows(corpus="samples", windows=1, window_tokens=2)
    assert Cell(model="m", evaluation=windows).identity() == {
        "model": "m",
        "evaluation": {"corpus": "samples", "windows": 1, "window_tokens": 2},
    }
    shown = Cell(model="m", evaluation=windows, pruning=Pruning(method="magnitude", sparsity="0.3")).identity()
    assert shown["pruning"] == {"method": "magnitude", "sparsity": "0.3"}


def test_true_sequential_is_an_axis_of_methods_with_statistics() -> None:
    plan = plan_of(
        '[grid]\nmethods = ["magnitude", "wanda"]\nsparsities = [0.5]\nvariants = ["csr"]\n'
        "true_sequential = [false, true]\n",
        TAIL + CALIBRATION.replace("[0, 3]", "[0]"),
    )
    assert [(c.pruning.method, c.pruning.true_sequential) for c in plan.cells[1:]] == [
        ("magnitude", False),
        ("wanda", False),
        ("wanda", True),
    ]
    (dropped,) = plan.dropped
    assert dropped.reason == "magnitude uses no statistics of a layer's inputs that true_sequential could recompute"
    assert [key_row(c)["true_sequential"] for c in plan.cells] == [None, None, None, True]
    assert Cell.from_json(plan.cells[3].to_json()) == plan.cells[3]


def test_ten_thousand_cells_are_all_different() -> None:
    sparsities = ", ".join(f"0.{n:04d}" for n in range(1, 5001))
    plan = plan_of(f'[grid]\nmethods = ["magnitude"]\nsparsities = [{sparsities}]\nvariants = ["masked", "csr"]\n')
    assert len({cell.cell_id for cell in plan.cells}) == len(plan.cells) == 10_001
    pairs = zip(plan.cells[1::2], plan.cells[2::2], strict=True)
    assert all(a.pruning == b.pruning and (a.variant, b.variant) == ("masked", "csr") for a, b in pairs)

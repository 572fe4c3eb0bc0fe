"""What every pruning method must keep, whatever it is: a new file in ``methods`` is tested at once."""

from __future__ import annotations

import dataclasses
from decimal import Decimal

import pytest
import torch

from sparsehpc.core.errors import CellError, UserError
from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.structure import Parameter
from sparsehpc.pruning.base import METHODS, Site, build_options, canonical_options, make_method
from sparsehpc.pruning.patterns import PATTERNS, parse_pattern, removed_count
from sparsehpc.pruning.statistics import collector

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = Calibration(corpus="file:x", windows=1, window_tokens=8)
ROWS, COLUMNS = 32, 48
SINGLE = ("unstructured", "block")
FREE = [(name, pattern) for name, kind in METHODS for pattern in kind.patterns if PATTERNS[pattern].kind in SINGLE]
FIXED = [(name, pattern) for name, kind in METHODS for pattern in kind.patterns if PATTERNS[pattern].kind == "keep"]
LEARNING = [name for name, kind in METHODS if kind.statistics]
#: Unstructured, as it is and refitted.
REFITTING = [(name, refit) for name, kind in METHODS if "unstructured" in kind.patterns
             for refit in ((False, True) if kind.refits else (False,))]  # fmt: skip
SPARSITIES = ["0", "0.01", "0.3", "0.5", "0.77", "1"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: Half types have ties, and an update may vanish in rounding: two sparsities show it.
COUNTS = [(torch.float32, s) for s in SPARSITIES] + [(dtype, s) for dtype in DTYPES[1:] for s in ("0.3", "0.77")]


def combination(name, pattern="unstructured", sparsity="0.5", **more):
    pattern = pattern if pattern in METHODS.get(name).patterns else METHODS.get(name).patterns[0]
    fixed = parse_pattern(pattern).fixed_sparsity
    calibration = TEXT if METHODS.get(name).needs_calibration(refit=more.get("refit", False)) else None
    return Pruning(
        method=name,
        pattern=pattern,
        sparsity=str(sparsity if fixed is None else fixed),
        calibration=calibration,
        seed=718,
        **more,
    )


def parameter(name, rows=ROWS, columns=COLUMNS):
    return Parameter(name, (rows, columns), "mlp", "linear", 0, "fc1")


def weights(dtype=torch.float32, count=3, seed=0):
    torch.manual_seed(seed)
    return {f"layers.{i}.weight": (torch.randn(ROWS, COLUMNS) * 0.05).to(dtype) for i in range(count)}


def inputs(seed=1, dead=()):
    torch.manual_seed(seed)
    x = torch.randn(200, COLUMNS) @ torch.randn(COLUMNS, COLUMNS) * torch.linspace(0.2, 3, COLUMNS)
    x[:, list(dead)] = 0
    return x


def prune_all(method, tensors, x=None):
    """All weights of a "model" through survey and prune, as the pipeline does it."""
    parameters = [parameter(name, *tensor.shape) for name, tensor in tensors.items()]
    type(method).survey_all([method], parameters, tensors.__getitem__)
    statistics = {}
    if method.wanted_statistics:
        found = collector(method.wanted_statistics, COLUMNS)
        found.add(inputs() if x is None else x, "layer")
        statistics = found.result()
    return {
        p.name: method.apply(tensors[p.name], Site(p, index), statistics).weight for index, p in enumerate(parameters)
    }


def zeros(tensors):
    return sum(int((tensor == 0).sum()) for tensor in tensors.values())


def same_bits(first, second):
    return all(torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in second)


def expected_zeros(name, pattern, sparsity):
    """What the method's own rounding comes to for three matrices."""
    shape, s = parse_pattern(pattern), Decimal(sparsity)
    rows, columns = ROWS // shape.rows, COLUMNS // shape.columns
    unit = shape.rows * shape.columns
    scope = METHODS.get(name).scope
    if scope == "model":
        return removed_count(s, 3 * rows * columns) * unit
    if scope == "row":
        return 3 * rows * removed_count(s, columns) * unit
    return 3 * removed_count(s, rows * columns) * unit


@pytest.mark.parametrize(("name", "pattern"), FREE)
@pytest.mark.parametrize(("dtype", "sparsity"), COUNTS)
def test_exactly_the_requested_count_is_zero(name, pattern, dtype, sparsity):
    dense = weights(dtype)
    assert zeros(dense) == 0
    pruned = prune_all(make_method(combination(name, pattern, sparsity)), dense)
    assert zeros(pruned) == expected_zeros(name, pattern, sparsity)


@pytest.mark.parametrize(("name", "pattern"), FIXED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_group_keeps_exactly_n_of_m(name, pattern, dtype):
    shape = parse_pattern(pattern)
    for tensor in prune_all(make_method(combination(name, pattern)), weights(dtype)).values():
        kept = (tensor.view(-1, shape.of) != 0).sum(1)
        assert bool((kept == shape.keep).all())


@pytest.mark.parametrize(("name", "pattern"), [item for item in FREE if item[1].startswith("block")])
def test_blocks_stay_or_go_as_one(name, pattern):
    shape = parse_pattern(pattern)
    for tensor in prune_all(make_method(combination(name, pattern)), weights()).values():
        blocks = (tensor != 0).view(ROWS // shape.rows, shape.rows, COLUMNS // shape.columns, shape.columns)
        kept = blocks.sum((1, 3))
        assert bool(((kept == 0) | (kept == shape.rows * shape.columns)).all())


@pytest.mark.parametrize(("name", "pattern"), FREE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_percent_is_the_dense_model_bit_for_bit(name, pattern, dtype):
    dense = weights(dtype)
    dense["layers.0.weight"][0, 0] = -0.0
    assert same_bits(prune_all(make_method(combination(name, pattern, "0")), dense), dense)


@pytest.mark.parametrize(("name", "pattern"), FREE + FIXED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_type_stays_and_the_dense_weight_is_not_touched(name, pattern, dtype):
    dense = weights(dtype)
    before = {key: tensor.clone() for key, tensor in dense.items()}
    pruned = prune_all(make_method(combination(name, pattern)), dense)
    assert all(tensor.dtype == dtype and tensor.shape == (ROWS, COLUMNS) for tensor in pruned.values())
    assert all(tensor.is_contiguous() for tensor in pruned.values())
    assert same_bits(dense, before)
    assert all(pruned[key].data_ptr() != dense[key].data_ptr() for key in dense)


@pytest.mark.parametrize(("name", "pattern"), FREE + FIXED)
def test_existing_zeros_count_towards_the_quota(name, pattern):
    dense = weights()
    for tensor in dense.values():
        tensor[:, ::8] = 0
    pruned = prune_all(make_method(combination(name, pattern)), dense)
    if PATTERNS[pattern].kind == "keep":
        assert all(
            int((tensor.view(-1, PATTERNS[pattern].of) != 0).sum(1).max()) <= PATTERNS[pattern].keep
            for tensor in pruned.values()
        )
    elif PATTERNS[pattern].kind == "unstructured":
        assert zeros(pruned) == expected_zeros(name, pattern, "0.5")
    else:  # a block that stays keeps the zeros inside it
        assert zeros(pruned) > expected_zeros(name, pattern, "0.5")


@pytest.mark.parametrize(("name", "refit"), REFITTING)
def test_where_more_is_zero_than_the_quota_nothing_else_goes(name, refit):
    dense = weights()
    for tensor in dense.values():
        tensor[:, torch.arange(COLUMNS) % 10 < 7] = 0
    pruned = prune_all(make_method(combination(name, sparsity="0.5", refit=refit)), dense)
    assert zeros(pruned) >= expected_zeros(name, "unstructured", "0.5")
    # Nothing was lost that had to be made up for: an update may leave the rounding of its float32 solutions, no more.
    assert all(torch.allclose(pruned[key], tensor, atol=1e-5) for key, tensor in dense.items())
    assert all(bool((pruned[key][tensor != 0] != 0).all()) for key, tensor in dense.items())


def first_units(name, pattern, sparsity):
    """Masks of three matrices in which nothing but its index tells one unit from another."""
    shape = parse_pattern(pattern)
    if shape.kind == "keep":
        gone = (torch.arange(COLUMNS) % shape.of < shape.of - shape.keep).expand(3, ROWS, COLUMNS)
        return list(gone)
    rows, columns = ROWS // shape.rows, COLUMNS // shape.columns
    each = {"row": (columns,), "matrix": (rows * columns,), "model": (3 * rows * columns,)}[METHODS.get(name).scope]
    order = torch.arange(3 * rows * columns).view(-1, *each)
    gone = (order - order[:, :1] < removed_count(Decimal(sparsity), each[0])).view(3, rows, columns)
    return list(gone.repeat_interleave(shape.rows, 1).repeat_interleave(shape.columns, 2))


@pytest.mark.parametrize(("name", "pattern"), FREE + FIXED)
def test_ties_go_by_index(name, pattern):
    dense = {key: torch.full_like(tensor, 0.25) for key, tensor in weights().items()}
    # Weights of ADMM that are tied change places from one projection to the next: here it has one.
    pruning = combination(name, pattern, "0.3", options=(("iterations", 1),) if name == "admm" else ())
    pruned = prune_all(make_method(pruning), dense, torch.eye(COLUMNS))  # uncorrelated inputs of one norm
    if same_bits(pruned, prune_all(make_method(dataclasses.replace(pruning, seed=1)), dense, torch.eye(COLUMNS))):
        assert all(
            torch.equal(tensor == 0, gone)
            for tensor, gone in zip(pruned.values(), first_units(name, pattern, "0.3"), strict=True)
        )
    else:  # what draws has no ties
        assert name == "random"


@pytest.mark.parametrize(("name", "pattern"), FREE + FIXED)
def test_a_matrix_of_equal_weights_loses_the_same_positions_every_time(name, pattern):
    dense = {key: torch.full_like(tensor, 0.25) for key, tensor in weights().items()}
    first = prune_all(make_method(combination(name, pattern)), dense)
    second = prune_all(make_method(combination(name, pattern)), dense)
    assert same_bits(first, second)
    if PATTERNS[pattern].kind == "unstructured":
        assert zeros(first) == expected_zeros(name, pattern, "0.5")


@pytest.mark.parametrize(("name", "pattern"), FREE + FIXED)
def test_nan_names_the_tensor(name, pattern):
    dense = weights()
    dense["layers.1.weight"][3, 4] = float("nan")
    with pytest.raises(CellError, match=r"layers\.1\.weight"):
        prune_all(make_method(combination(name, pattern)), dense)


@pytest.mark.parametrize(("name", "pattern"), FREE + FIXED)
def test_the_mask_does_not_depend_on_threads(name, pattern):
    dense = weights(count=1)
    one = prune_all(make_method(combination(name, pattern)), dense)
    torch.set_num_threads(2)
    two = prune_all(make_method(combination(name, pattern)), dense)
    assert all(torch.equal(one[key] == 0, two[key] == 0) for key in dense)


@pytest.mark.parametrize(("name", "pattern"), FREE)
def test_a_dead_input_feature_goes_first_and_breaks_nothing(name, pattern):
    dead = (5, 17)
    pruned = prune_all(make_method(combination(name, pattern, "0.25")), weights(), inputs(dead=dead))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in pruned.values())
    if name in LEARNING and pattern == "unstructured":
        assert all(bool((tensor[:, list(dead)] == 0).all()) for tensor in pruned.values())
    if pattern == "unstructured":
        assert zeros(pruned) == expected_zeros(name, pattern, "0.25")


@pytest.mark.parametrize("name", LEARNING)
def test_inputs_that_are_all_zero_still_give_the_count(name):
    pruned = prune_all(make_method(combination(name)), weights(), torch.zeros(9, COLUMNS))
    assert zeros(pruned) == expected_zeros(name, "unstructured", "0.5")


@pytest.mark.parametrize(("name", "pattern"), [item for item in FREE + FIXED if METHODS.get(item[0]).refits])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_refit_keeps_the_mask_and_lowers_the_output_error(name, pattern, dtype):
    dense, x = weights(dtype), inputs()
    plain = prune_all(make_method(combination(name, pattern)), dense, x)
    refitted = prune_all(make_method(combination(name, pattern, refit=True)), dense, x)

    def error(pruned):
        return sum(float(((dense[key].double() - pruned[key]) @ x.double().T).square().sum()) for key in dense)

    assert all(torch.equal(plain[key] == 0, refitted[key] == 0) for key in dense)
    # ADMM has fitted already: what is left of its gain may drown in the rounding of half types.
    assert error(refitted) < error(plain) * (1 + max(1e-6, torch.finfo(dtype).eps if dtype != torch.float32 else 0))


@pytest.mark.parametrize(("name", "refit"), REFITTING)
def test_weights_too_small_for_half_types_do_not_vanish_beyond_the_quota(name, refit):
    # float16 ends at 6e-8: updates of weights this small would often be rounded to zero.
    dense = {key: (tensor * 2e-5).half() for key, tensor in weights().items()}
    pruned = prune_all(make_method(combination(name, sparsity="0.3", refit=refit)), dense)
    assert 0 < zeros(dense) < zeros(pruned) == expected_zeros(name, "unstructured", "0.3")


@pytest.mark.parametrize(("name", "refit"), REFITTING)
def test_weights_too_large_for_the_type_are_an_error_and_never_infinite(name, refit):
    # Features that are almost equal: what stays must take over what goes, and float16 ends at 65504.
    dense = {"layers.0.weight": torch.full((ROWS, COLUMNS), 6e4).half()}
    x = torch.linspace(-1, 1, 200)[:, None] + 0.01 * inputs()
    method = make_method(combination(name, refit=refit))
    wide = prune_all(method, {key: tensor.float() for key, tensor in dense.items()}, x)["layers.0.weight"]
    if float(wide.abs().max()) > 65504 + 16:  # half a step more would still be rounded down
        with pytest.raises(CellError, match=r"layers\.0\.weight is not finite in float16, which holds up to 65504"):
            prune_all(method, dense, x)
    else:
        assert bool(torch.isfinite(prune_all(method, dense, x)["layers.0.weight"]).all())


@pytest.mark.parametrize(("name", "kind"), list(METHODS))
def test_it_says_what_it_is(name, kind):
    assert kind.name == name
    assert all(text.strip() for text in (kind.title, kind.citation, kind.formula, kind.__doc__ or ""))
    assert set(kind.patterns) <= set(PATTERNS)
    assert "default" in kind.allocations
    defaults = kind.options_type()
    for field in dataclasses.fields(defaults):
        assert canonical_options(name, {field.name: getattr(defaults, field.name)}) == ()
        with pytest.raises(UserError, match=field.name):
            build_options(name, {field.name: []})


@pytest.mark.parametrize("name", METHODS.names())
def test_unknown_options_and_patterns_are_refused_with_the_legal_ones(name):
    with pytest.raises(UserError, match="unknown option 'no_such_option'"):
        build_options(name, {"no_such_option": 1})
    missing = next((pattern for pattern in PATTERNS if pattern not in METHODS.get(name).patterns), None)
    if missing is not None:
        with pytest.raises(UserError, match="cannot produce pattern"):
            make_method(dataclasses.replace(combination(name), pattern=missing))


@pytest.mark.parametrize("name", [name for name, kind in METHODS if kind.needs_calibration()])
def test_a_method_that_learns_needs_calibration_text(name):
    with pytest.raises(UserError, match="needs calibration text"):
        make_method(dataclasses.replace(combination(name), calibration=None))

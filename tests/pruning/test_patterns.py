from __future__ import annotations

from decimal import Decimal

import pytest

from sparsehpc.core.errors import UserError
from sparsehpc.pruning.patterns import PATTERNS, parse_pattern


@pytest.mark.parametrize(
    ("name", "sparsity"), [("unstructured", None), ("2:4", "0.5"), ("4:8", "0.5"), ("1:4", "0.75"), ("block8x8", None)]
)
def test_the_pattern_fixes_the_sparsity_it_keeps(name, sparsity):
    assert parse_pattern(name).fixed_sparsity == (None if sparsity is None else Decimal(sparsity))


def test_widths_that_do_not_divide_say_so():
    assert parse_pattern("4:8").unsupported(10, 16) is None
    assert "divisible by 8" in str(parse_pattern("4:8").unsupported(10, 12))
    assert parse_pattern("block16x16").unsupported(32, 48) is None
    assert "16 x 16 blocks" in str(parse_pattern("block16x16").unsupported(24, 48))
    assert parse_pattern("unstructured").unsupported(3, 5) is None


@pytest.mark.parametrize("name", ["4:2", "2:2", "block3x3", "unstructurd", "", "2:4 "])
def test_unknown_patterns_name_the_legal_ones(name):
    with pytest.raises(UserError, match=r"Legal: .*unstructured"):
        parse_pattern(name)


def test_names_agree_with_keys():
    assert all(name == pattern.name for name, pattern in PATTERNS.items())

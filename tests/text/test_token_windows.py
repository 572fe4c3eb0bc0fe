"""Token files: whole or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehpc.core.errors import UserError
from sparsehpc.text.windows import TokenWindows


def windows(*lists: list[int], every_position: bool = True) -> TokenWindows:
    return TokenWindows(
        ids=tuple(np.array(ids, dtype=np.int64) for ids in lists),
        text_bytes=tuple(3 * len(ids) for ids in lists),
        every_position=every_position,
        starts=tuple(range(len(lists))),
        source="made up",
    )


@settings(max_examples=25, deadline=None)
@given(
    lists=st.lists(st.lists(st.integers(0, 2**40), min_size=1, max_size=9), min_size=1, max_size=5),
    every_position=st.booleans(),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, lists: list[list[int]], every_position: bool) -> None:
    path = tmp_path_factory.mktemp("tokens") / "deep" / "t.npz"
    written = windows(*lists, every_position=every_position)
    written.save(path)
    read = TokenWindows.load(path)
    assert [ids.tolist() for ids in read.ids] == lists
    assert dataclasses.replace(read, ids=()) == dataclasses.replace(written, ids=())
    assert all(ids.dtype == np.int64 for ids in read.ids)
    assert read.digest == written.digest
    assert [file.name for file in path.parent.iterdir()] == ["t.npz"]


def test_sums_by_eye() -> None:
    three = windows([1, 2, 3], [4], [5, 6])
    assert three.tokens == 6
    assert three.longest == 3


def test_digest_depends_on_all_that_decides_a_result() -> None:
    base = windows([1, 2, 3], [4, 5])
    others = [
        windows([1, 2, 3], [4, 6]),
        windows([1, 2], [3, 4, 5]),
        windows([4, 5], [1, 2, 3]),
        windows([1, 2, 3], [4, 5], every_position=False),
        dataclasses.replace(base, text_bytes=(9, 7)),
        windows([1, 2, 3]),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 1 + len(others)
    # Where the same tokens came from does not.
    assert dataclasses.replace(base, source="elsewhere", starts=(7, 8)).digest == base.digest


def test_digest_is_fixed() -> None:
    """Run folders name their token files by it: a change of the digest's rule would orphan them."""
    assert windows([1, 2, 3], [4, 5]).digest == "80ae50bc2a5ae8f607e2c10a09a7b0bbeb7f6af792c5044058b705155c8e2828"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing or damaged"):
        TokenWindows.load(tmp_path / "none.npz")


def test_every_damaged_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Whatever bit of the file flips, the tokens read are those written, or there is one clear error."""
    path = tmp_path / "t.npz"
    written = windows([1, 2, 3], [4, 5])
    written.save(path)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        try:
            assert TokenWindows.load(path).digest == written.digest
        except UserError:
            refused += 1
    assert refused > len(whole) // 2


@pytest.mark.parametrize("keep", [0, 1, 50, 200, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "t.npz"
    windows(list(range(500)), [4, 5]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="missing or damaged"):
        TokenWindows.load(path)


def test_another_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(UserError, match="missing or damaged"):
        TokenWindows.load(path)


def test_tokens_of_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    windows([1, 2, 3]).save(path)
    with np.load(path) as archive:
        header = archive["header"]
    np.savez(path, header=header, ids=np.array([1, 2, 4]))
    with pytest.raises(UserError, match="does not match its digest"):
        TokenWindows.load(path)

"""The suite ``masks``: its walk prunes as a study's does, with windows one at a time and together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES

from jobs.bench import _masks_walk, masks
from jobs.bench._masks_walk import Together, together
from sparsehpc.compress import Compression
from sparsehpc.core.spec import Calibration, Pruning
from sparsehpc.models.stream import LayerWalk
from sparsehpc.pruning.base import METHODS
from sparsehpc.text.windows import TokenWindows

pytestmark = pytest.mark.usefixtures("one_thread")

CALIBRATION = Calibration(corpus="random", windows=3, window_tokens=24)


def text():
    ids = np.random.default_rng(1).integers(0, 512, (3, 24))
    return TokenWindows(tuple(ids), (72,) * 3, False, (0, 24, 48), "random tokens")


def test_every_method_whose_masks_come_from_text_has_a_row():
    assert {options["method"] for options, _ in masks.WORK.values()} == {
        name for name, kind in METHODS if kind.needs_calibration()
    }


@pytest.mark.parametrize("way", masks.WORK)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_masks_are_those_of_the_walk_and_hardly_move_in_one_batch(way, family, tiny_snapshot):
    snapshot = tiny_snapshot(FAMILIES[family])
    pruning = Pruning(**masks.WORK[way][0], calibration=CALIBRATION)
    sections = Compression(snapshot, pruning, "masked", calibration=text()).sections()
    wanted = [
        torch.cat([(stored.decode() == 0).view(-1) for stored in section.stored.values()])
        for section in sections
        if section.layer is not None
    ]
    with torch.inference_mode():
        single = list(_masks_walk.masks(LayerWalk(snapshot), text(), pruning, 3))
        batch = list(_masks_walk.masks(Together(snapshot, 3), together(text()), pruning, 3))
    assert len(single) == len(wanted) == 3
    assert all(torch.equal(mask, expected) for mask, expected in zip(single, wanted, strict=True))
    # Windows that saw each other, or lost their positions, would move some percent of the bits.
    moved = sum(int((mask != other).sum()) for mask, other in zip(single, batch, strict=True))
    assert moved <= 0.002 * sum(mask.numel() for mask in single)


def test_different_bits_are_counted_by_layer():
    def packed(*layers):
        found = {f"a/{i}": np.packbits(bits) for i, bits in enumerate(layers)}
        return found | {f"a/{i}/bits": np.array(len(bits)) for i, bits in enumerate(layers)}

    baseline, other = packed([1, 0, 1, 0, 0], [0, 0]), packed([1, 1, 0, 0, 0], [0, 0])
    assert masks._compared(baseline, other, "a") == {
        "ratio": 1 - 2 / 7,
        "mask_bits": 7,
        "mask_bits_different": [2, 0],
    }

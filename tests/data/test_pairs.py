from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from isocost.data.degradation import DEGRADATIONS, degrade, draw
from isocost.data.images import open_images
from isocost.data.pairs import Pairs, enlarged
from isocost.data.photos import Crops
from isocost.errors import DataError, SpecError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 50), (32, 32), (60, 40)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    return open_images([folder], captions_required=False)


def test_pair_i_is_crop_i_and_what_degradation_i_leaves_of_it(photographs):
    pairs, crops = Pairs(photographs, 32, "realesrgan", seed=1), Crops(photographs, 32, 1, mirror=True)
    for index in (5, 2):
        high = pairs.high(index)
        assert np.array_equal(high, crops.image(index))
        low = pairs.low(index, high)
        assert low.shape == (8, 8, 3)
        assert np.array_equal(low, degrade(high, draw(DEGRADATIONS["realesrgan"], 1, index)))


def test_another_degradation_leaves_something_else_of_the_same_crop(photographs):
    heavy, light = (Pairs(photographs, 32, name, 1) for name in ("realesrgan", "stablesr"))
    high = heavy.high(7)
    assert np.array_equal(high, light.high(7)) and not np.array_equal(heavy.low(7, high), light.low(7, high))


def test_what_cannot_be_is_refused(photographs):
    with pytest.raises(DataError, match=r"1\.png: 32 x 32 pixels, smaller than a crop of 40"):
        Pairs(photographs, 40, "realesrgan", 0)
    with pytest.raises(SpecError, match="Did you mean 'realesrgan'"):
        Pairs(photographs, 32, "realesrgn", 0)


def test_enlarged_is_pillows_bicubic():
    low = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    expected = Image.fromarray(low).resize((28, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(enlarged(low), np.asarray(expected))

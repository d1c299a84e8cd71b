from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isocost.data.images import open_images
from isocost.data.photos import Crops
from isocost.errors import DataError


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five photographs of several sizes: red is the row, green the column, blue which one it is."""
    for number in range(5):
        y, x = np.mgrid[: 20 + 4 * number, : 40 - 4 * number]
        Image.fromarray(np.stack([y, x, np.full_like(x, number)], axis=2).astype(np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    return tmp_path


def crops(folder: Path, **options) -> Crops:
    return Crops(open_images([folder], captions_required=False), 16, seed=0, mirror=True, **options)


def test_an_epoch_has_a_crop_of_every_photograph(folder):
    found = crops(folder).images(range(15))
    assert found.shape == (15, 16, 16, 3) and found.dtype == np.uint8
    which = found[:, 0, 0, 2].reshape(3, 5)
    assert (np.sort(which, axis=1) == np.arange(5)).all() and len({tuple(row) for row in which}) > 1


def test_a_crop_is_a_function_of_its_number(folder):
    everything = crops(folder).images(range(30))
    frugal = crops(folder, cache_bytes=0)
    for number in (29, 3, 17, 3):
        assert np.array_equal(frugal.image(number), everything[number])
    other = Crops(open_images([folder], captions_required=False), 16, seed=1, mirror=True)
    assert not np.array_equal(other.images(range(30)), everything)
    with ThreadPoolExecutor(4) as threads:
        assert np.array_equal(np.stack(list(threads.map(frugal.image, range(30)))), everything)


def test_crops_lie_anywhere_and_half_are_mirrored(folder):
    found = crops(folder).images(range(600)).astype(int)
    tops, widths = found[:, 0, 0, 0], np.diff(found[:, 0, [0, -1], 1], axis=1)[:, 0]
    assert set(abs(widths)) == {15}
    assert 0.4 < np.mean(widths < 0) < 0.6
    upright = Crops(open_images([folder], captions_required=False), 16, seed=0).images(range(200)).astype(int)
    assert (np.diff(upright[:, 0, [0, -1], 1], axis=1) == 15).all()
    for number in range(5):
        mine = found[:, 0, 0, 2] == number
        assert set(tops[mine]) == set(range(20 + 4 * number - 16 + 1))
        assert set(found[mine][:, 0, :, 1].min(axis=1)) == set(range(40 - 4 * number - 16 + 1))


def test_few_photographs_are_kept(folder):
    one = crops(folder, cache_bytes=3 * 36 * 24 + 1)
    one.images(range(20))
    assert sum(pixels.nbytes for pixels in one._kept.values()) <= 3 * 36 * 24 + 1
    everything = crops(folder)
    everything.images(range(20))
    assert len(everything._kept) == 5


def test_a_photograph_that_is_too_small_or_broken_is_named_at_once(folder):
    Image.fromarray(np.zeros((15, 40, 3), np.uint8)).save(folder / "small.png")
    with pytest.raises(DataError, match=r"small\.png: 40 x 15 pixels, smaller than a crop of 16"):
        crops(folder)
    (folder / "small.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"small\.png: not an image"):
        crops(folder)

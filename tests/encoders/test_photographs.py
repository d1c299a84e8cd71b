"""Pairs for super-resolution, encoded: latents of crops, and beside them those of what is left of them, enlarged."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tests.encoders.fakes import FakeAutoencoder, FakeTextEncoder

from isocost.data.images import open_images
from isocost.data.pairs import Pairs, enlarged
from isocost.encoders.latents import LatentShards
from isocost.encoders.live import encode_live
from isocost.encoders.precompute import precompute
from isocost.encoders.sources import open_source
from isocost.errors import DataError, SpecError
from isocost.specs import DataSource


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> DataSource:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return DataSource(kind="images", resolution=16, images=20, train=(str(folder),), degradation="realesrgan", seed=5)


@pytest.fixture(scope="module")
def encoded(source, tmp_path_factory) -> LatentShards:
    return precompute(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path_factory.mktemp("latents"))


def test_pair_i_is_what_pairs_make_of_it(source, encoded):
    pairs, encoder = Pairs(open_images(source.train, False), 16, "realesrgan", 5), FakeAutoencoder()
    for index in (0, 7, 19):
        high = pairs.high(index)
        given = enlarged(pairs.low(index, high))
        for found, image in ((encoded.latents([index]), high), (encoded.conditions([index]), given)):
            np.testing.assert_array_equal(found, encoder.encode(image[None]).astype(np.float16).astype(np.float32))
    assert (encoded.contexts([3, 4]) == encoded.null_context).all()
    assert encoded.spec.degradation == "realesrgan"


def test_live_gives_what_was_stored(source, encoded, tmp_path):
    live = encode_live(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path)
    wanted = [19, 2, 2, 11]
    for read in ("latents", "conditions", "contexts"):
        np.testing.assert_array_equal(getattr(live, read)(wanted), getattr(encoded, read)(wanted))
    assert live.spec.degradation == "realesrgan"


@pytest.mark.parametrize("changed", [{"degradation": "stablesr"}, {"seed": 6}, {"resolution": 24}])
def test_other_pairs_are_other_data(source, encoded, changed):
    other = source.model_copy(update=changed)
    assert open_source(other).digest != open_source(source).digest
    with pytest.raises(DataError, match="holds other data"):
        precompute(other, FakeAutoencoder(), FakeTextEncoder(), encoded.folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "scenes", "images": 8}, "a degradation is for kind 'images'"),
        ({"kind": "images", "train": ("photographs",)}, "say how many in `images`"),
        ({"kind": "images", "train": ("photographs",), "images": 8, "resolution": 30}, "has no quarter"),
    ],
)
def test_sources_that_cannot_be(fields, message):
    with pytest.raises(SpecError, match=message):
        DataSource.parse({"degradation": "realesrgan", **fields})


def test_a_folder_without_images_is_named(tmp_path):
    source = DataSource(kind="images", resolution=16, images=4, train=(str(tmp_path),), degradation="realesrgan")
    with pytest.raises(DataError, match=r"no images and no \.tar shards in this folder"):
        open_source(source)

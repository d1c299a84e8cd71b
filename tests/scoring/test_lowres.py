from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from isocost.data.degradation import DEGRADATIONS, degrade, draw
from isocost.errors import DataError, SpecError
from isocost.scoring.lowres import LowResolution, write_lowres
from isocost.scoring.protocols import open_protocol, protocol_crops, sr

SIZES = [(70, 90), (64, 64)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"photo-{number}.png")
    return folder


@pytest.fixture(scope="module")
def crops(photographs):
    return sr(64, photographs, each=3)


@pytest.fixture(scope="module")
def kept(crops, tmp_path_factory):
    return write_lowres(crops, "realesrgan", tmp_path_factory.mktemp("kept"))


def test_a_protocol_of_any_photographs_chooses_by_name_alone(photographs, crops):
    assert crops.keys == tuple(f"photo-{photo}-{number}" for photo in (0, 1) for number in (0, 1, 2))
    with Image.open(photographs / "photo-0.png") as image:
        whole = np.asarray(image)
    for place, crop in enumerate(crops.crops[:3]):
        assert np.array_equal(crops.read(place).pixels, whole[crop.y : crop.y + 64, crop.x : crop.x + 64])
    assert {(crop.x, crop.y) for crop in crops.crops[3:]} == {(0, 0)}
    assert sorted(crops.in_order) == list(range(6)) and crops.in_order != tuple(range(6))
    assert crops.protocol == sr(64, photographs, each=3).protocol != sr(64, photographs, each=2).protocol
    assert len(open_protocol(f"sr-64:{photographs}")) == 32
    with pytest.raises(DataError, match=r"photo-0\.png: 90 x 70 pixels, smaller than a crop of 128"):
        open_protocol(f"sr-128:{photographs}")


def test_the_digest_is_of_the_photographs_too(photographs, crops, tmp_path):
    for number, size in enumerate(SIZES):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"photo-{number}.png")
    assert sr(64, tmp_path, each=3).manifest == crops.manifest
    assert sr(64, tmp_path, each=3).protocol != crops.protocol


def test_low_images_are_8_bit_pngs_of_the_crops_degraded_by_their_seeds(crops, kept):
    for place, crop in enumerate(crops.crops):
        high = crops.read(place).pixels
        low = degrade(high, draw(DEGRADATIONS["realesrgan"], crop.degradation_seed, 0))
        with Image.open(kept.folder / "low" / f"{crop.key}.png") as image:
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), low)
        assert np.array_equal(kept.low([crop.key])[0], low) and np.array_equal(kept.high([crop.key])[0], high)
    assert kept.targets.keys == crops.keys


def test_what_is_there_is_kept_and_what_was_changed_is_named(crops, kept, tmp_path):
    folder = tmp_path / "own"
    first = write_lowres(crops, "realesrgan", folder)
    assert first.digest == kept.digest
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert write_lowres(crops, "realesrgan", folder).digest == first.digest
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    key = crops.keys[1]
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "low" / f"{key}.png")
    with pytest.raises(DataError, match=f"{key}.png: changed"):
        first.low([crops.keys[0], key])
    (folder / "high" / f"{key}.png").unlink()
    with pytest.raises(DataError, match=f"{key}.png: No such file"):
        first.high([key])
    (folder / "manifest.json").write_text(json.dumps({"pairs": [{}]}))
    with pytest.raises(DataError, match="damaged"):
        LowResolution(folder)
    with pytest.raises(DataError, match="not a folder of low-resolution images"):
        LowResolution(tmp_path)


def test_another_degradation_is_another_set(crops, kept, tmp_path):
    assert write_lowres(crops, "stablesr", tmp_path / "light").digest != kept.digest
    with pytest.raises(SpecError, match="unknown degradation"):
        write_lowres(crops, "blur", tmp_path / "blur")


def test_only_protocols_of_crops_can_be_upscaled(monkeypatch):
    from isocost.scoring import protocols

    monkeypatch.setitem(protocols.PROTOCOLS, "coco2014-30k", lambda folder: None)
    with pytest.raises(SpecError, match="no crops to upscale"):
        protocol_crops("coco2014-30k:/data")

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from PIL import Image
from tests.scoring.pictures import Means, pictures, write_folder

from isocost.data.images import Decoded
from isocost.data.shards import write_shards
from isocost.errors import DataError
from isocost.scoring import streaming
from isocost.scoring.sets import ImageSet, open_set
from isocost.scoring.streaming import Column, Tally, extract, stream

MEANS = Column("means@ab", Means())


def first_pixels(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return images[:, 0, 0, 0].astype(np.float64) - targets[:, 0, 0, 0]


@pytest.mark.parametrize("batch", [1, 3, 64, 1000])
def test_no_value_depends_on_the_batch(batch):
    images = open_set(pictures(70))
    found, tally = extract(images, [MEANS], batch=batch)
    assert np.array_equal(found["means@ab"], Means()(pictures(70)).astype(np.float16))
    assert tally.rows == list(range(70))


def test_no_value_depends_on_the_shards(tmp_path):
    images = pictures(9)
    folder = write_folder(tmp_path / "folder", images)
    whole, tally = extract(open_set(folder), [MEANS])
    samples = [{"__key__": path.stem, "png": path.read_bytes()} for path in sorted(folder.glob("*.png"))]
    write_shards(samples[::-1], tmp_path / "tars", "x", per_shard=2)
    sharded, other = extract(open_set(tmp_path / "tars"), [MEANS])
    assert np.array_equal(whole["means@ab"], sharded["means@ab"])
    assert tally.digest == other.digest == extract(open_set(images), [MEANS])[1].digest
    assert tally.digest != extract(open_set(images[::-1]), [MEANS])[1].digest


def test_images_of_other_sizes_go_through_on_their_own(tmp_path):
    small, large = pictures(4, size=16), pictures(4, size=24)
    folder = write_folder(tmp_path / "a", small)
    for index in range(4):
        Image.fromarray(large[index]).save(folder / f"{index:03d}-large.png")
    found, _ = extract(open_set(folder), [MEANS])
    keys = open_set(folder).keys
    for size, images in (("", small), ("-large", large)):
        rows = [keys.index(f"{index:03d}{size}") for index in range(4)]
        assert np.array_equal(found["means@ab"][rows], Means()(images).astype(np.float16))


def test_pairs_are_of_an_image_and_its_target():
    images, targets = open_set(pictures(5)), open_set(pictures(5, seed=1))
    columns = [Column("d", first_pixels, "pairs"), Column("t", Means(), "targets"), MEANS]
    found, _ = extract(images, columns, targets, batch=2)
    assert np.array_equal(found["d"], first_pixels(pictures(5), pictures(5, seed=1))) and found["d"].dtype == np.float64
    assert np.array_equal(found["t"], Means()(pictures(5, seed=1)).astype(np.float16))
    assert np.array_equal(found["means@ab"], Means()(pictures(5)).astype(np.float16))


def test_a_target_of_another_size_is_an_error_even_where_unreadable_ones_are_skipped():
    images, targets = open_set(pictures(2), "mine"), open_set(pictures(2, size=20), "theirs")
    with pytest.raises(DataError, match=r"mine: image 0 is 16 x 16 pixels, its target 20 x 20 pixels"):
        extract(images, [Column("d", first_pixels, "pairs")], targets, skip_unreadable=True)


class Watched(ImageSet):
    """Images drawn when read, and how many of them are alive at once."""

    name = "watched"

    def __init__(self, count: int):
        self.count, self.alive, self.most = count, 0, 0

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Decoded:
        pixels = np.full((8, 8, 3), index % 251, np.uint8)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(pixels, self._gone)
        return Decoded(pixels)

    def _gone(self) -> None:
        self.alive -= 1


def test_only_a_few_images_are_held_at_once():
    watched = Watched(500)
    extract(watched, [MEANS], batch=8)
    gc.collect()
    assert watched.alive == 0
    assert watched.most <= 8 + 8 + streaming.AHEAD + streaming.THREADS + 1


def test_a_batch_of_large_images_is_cut_short(monkeypatch):
    seen: list[int] = []

    def count(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return Means()(images)

    monkeypatch.setattr(streaming, "BATCH_BYTES", 3 * 16 * 16 * 3)
    extract(open_set(pictures(7)), [Column("x", count)])
    assert seen == [3, 3, 1]


def test_conversions_are_counted(tmp_path):
    folder = write_folder(tmp_path / "a", pictures(2))
    image = Image.fromarray(pictures(1)[0])
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    _, tally = extract(open_set(folder), [MEANS])
    names = ("16-bit grey", "CMYK", "grey", "palette", "transparency", "turned upright")
    assert tally.conversions == dict.fromkeys(names, 1)
    assert tally.formats == {"PNG": 6, "JPEG": 2}
    assert tally.notices("a") == [
        "a: of 8 images, brought to 8-bit RGB: 16-bit grey (1), CMYK (1), grey (1), palette (1), transparency (1), "
        "turned upright (1)."
    ]


def test_an_unreadable_image_is_named_or_counted(tmp_path):
    folder = write_folder(tmp_path / "a", pictures(5))
    (folder / "002.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"002\.png: not an image"):
        extract(open_set(folder), [MEANS])
    found, tally = extract(open_set(folder), [MEANS], skip_unreadable=True)
    assert len(found["means@ab"]) == 4 and tally.rows == [0, 1, 3, 4]
    (notice,) = tally.notices("a")
    assert notice.startswith("a: 1 images cannot be read and are left out: ") and "002.png" in notice
    for path in folder.glob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match="none of its 5 images can be read"):
        extract(open_set(folder), [MEANS], skip_unreadable=True)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "are NaN or infinite"), (1e5, "do not fit half precision")])
def test_features_that_are_not_finite_name_the_image(tmp_path, value, message):
    def broken(images: np.ndarray) -> np.ndarray:
        features = Means()(images)
        features[images[:, 0, 0, 0] == 255] = value
        return features

    images = np.minimum(pictures(6), 254)
    images[4, 0, 0, 0] = 255
    folder = write_folder(tmp_path / "a", images)
    with pytest.raises(DataError, match=rf"004\.png: its features by 'broken' {message}"):
        extract(open_set(folder), [Column("broken@ab", broken)])


def test_streaming_gives_the_batches_of_extract():
    tally = Tally()
    parts = list(stream(open_set(pictures(10)), [MEANS], tally, batch=4))
    assert [len(part["means@ab"]) for part in parts] == [4, 4, 2]
    whole, _ = extract(open_set(pictures(10)), [MEANS])
    assert np.array_equal(np.concatenate([part["means@ab"] for part in parts]), whole["means@ab"])
    calls: list[tuple[int, int]] = []
    extract(open_set(pictures(10)), [MEANS], batch=4, report=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]

from __future__ import annotations

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image
from tests.encoders.fakes import FakeAutoencoder, FakeTextEncoder

from isocost.data.shards import write_shards
from isocost.encoders import live as module
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.latents import LatentShards
from isocost.encoders.live import LiveLatents, encode_live, open_data
from isocost.encoders.precompute import precompute
from isocost.encoders.text import load_text_encoder
from isocost.errors import DataError
from isocost.specs import DataSource, SceneOptions

SOURCE = DataSource(resolution=16, images=40, seed=5, scenes=SceneOptions(groups=1))
SHIPPED = ("scenes-vae", "scenes-clip-condition")


def live(folder, **changes) -> LiveLatents:
    return encode_live(SOURCE.model_copy(update=changes), FakeAutoencoder(), FakeTextEncoder(), folder)


@pytest.fixture
def pictures(tmp_path) -> DataSource:
    """24 pictures in three shards."""
    samples = []
    for number in range(24):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (20, 26, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "png")
        samples.append({"__key__": f"{number:03d}", "png": buffer.getvalue(), "txt": f"picture {number % 5}"})
    write_shards(samples, tmp_path / "shards", "x", per_shard=10)
    return DataSource(kind="images", resolution=16, train=(str(tmp_path / "shards"),))


def test_what_is_encoded_live_is_what_precompute_stores(tmp_path):
    """With the shipped encoders, in other batches and another order: in few places the last bit of fp16 may differ."""
    encoders = load_autoencoder(SHIPPED[0]), load_text_encoder(SHIPPED[1])
    source = DataSource(images=40, seed=5)
    ahead = precompute(source, *encoders, tmp_path / "ahead")
    now = encode_live(source, *encoders, tmp_path / "live", SHIPPED)
    order = np.random.default_rng(0).permutation(40)
    for part in (order[:7], order[7:8], order[8:]):
        for name in ("latents", "contexts"):
            expected, found = getattr(ahead, name)(part), getattr(now, name)(part)
            assert found.dtype == np.float32 and found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2**-14)
            assert (found == expected).mean() > 0.99
    np.testing.assert_array_equal(now.null_context, ahead.null_context)
    assert now.captions == ahead.captions and len(now) == 40
    assert now.spec.model_copy(update={"digest_of_shards": ""}) == ahead.spec.model_copy(
        update={"digest_of_shards": ""}
    )


def test_a_batch_is_encoded_once_whether_asked_for_in_parts_or_ahead(tmp_path):
    data = live(tmp_path)
    calls = data._autoencoder.calls
    data.prefetch(range(8))
    data.prefetch(range(8))
    data.prefetch(range(8, 16))
    whole = data.latents(range(8))
    np.testing.assert_array_equal(data.latents([3, 1]), whole[[3, 1]])
    data.contexts(range(4, 8))
    data.latents(range(8, 16))
    assert data._autoencoder.calls == calls + 2
    data.contexts([30, 31])
    data.latents([30, 31])
    assert data._autoencoder.calls == calls + 3


def test_the_next_batch_is_encoded_while_training_computes(tmp_path):
    data, begun, go_on = live(tmp_path), threading.Event(), threading.Event()
    real = data._autoencoder.encode

    def slow(images):
        begun.set()
        assert go_on.wait(30)
        return real(images)

    data._autoencoder.encode = slow
    data.prefetch(range(8))
    assert begun.wait(30), "nobody asked for it yet"
    go_on.set()
    assert data.latents(range(8)).shape == (8, 4, 4, 4)


def test_pictures_are_read_shard_by_shard(pictures, tmp_path):
    data = encode_live(pictures, FakeAutoencoder(9.0), FakeTextEncoder(), tmp_path / "live")
    ahead = precompute(pictures, FakeAutoencoder(9.0), FakeTextEncoder(), tmp_path / "ahead")
    assert data.shards == (10, 10, 4) and len(data) == 24
    np.testing.assert_array_equal(data.latents([23, 0, 11]), ahead.latents([23, 0, 11]))
    np.testing.assert_array_equal(data.contexts([23, 0, 11]), ahead.contexts([23, 0, 11]))
    with pytest.raises(IndexError):
        data.latents([24])
    assert data.latents([]).shape == (0, 4, 4, 4) and data.contexts([]).shape == (0, 5, 3)


def test_a_broken_picture_is_named_when_it_is_prefetched(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_TRIED", 8)
    samples = [{"__key__": "a", "png": b"broken", "txt": "x"}]
    write_shards(samples, tmp_path / "more", "y")
    source = pictures.model_copy(update={"train": (*pictures.train, str(tmp_path / "more"))})
    data = encode_live(source, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "live")
    data.prefetch([3, 24])
    with pytest.raises(DataError, match=r"y-00000\.tar: key 'a': not an image"):
        data.latents([3])


def test_open_data_finds_either_kind(tmp_path):
    encoders = load_autoencoder(SHIPPED[0]), load_text_encoder(SHIPPED[1])
    source = DataSource(images=5)
    now = encode_live(source, *encoders, tmp_path / "live", SHIPPED)
    again = open_data(tmp_path / "live")
    assert isinstance(again, LiveLatents) and again.spec == now.spec
    np.testing.assert_array_equal(again.latents(range(5)), now.latents(range(5)))
    precompute(source, *encoders, tmp_path / "ahead")
    assert isinstance(open_data(tmp_path / "ahead"), LatentShards)
    assert open_data(tmp_path / "ahead").spec.digest_of_shards != now.spec.digest_of_shards
    header = json.loads((tmp_path / "live" / "header.json").read_text())
    header["autoencoder"] = "another"
    (tmp_path / "live" / "header.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match=r"live: not what its header says \(autoencoder differ\)"):
        open_data(tmp_path / "live")


def test_a_shard_that_shrank_is_named_before_anything_is_read(pictures, tmp_path):
    encoders = load_autoencoder(SHIPPED[0]), load_text_encoder(SHIPPED[1])
    source = pictures.model_copy(update={"resolution": 32})
    encode_live(source, *encoders, tmp_path / "live", SHIPPED, check_scale=False)
    (tmp_path / "shards" / "x-00002.tar").unlink()
    (tmp_path / "shards" / "x-00002.tar.index.json").unlink()
    write_shards([{"__key__": "020", "png": b"", "txt": "x"}], tmp_path / "shards", "x-00002")
    (tmp_path / "shards" / "x-00002-00000.tar").rename(tmp_path / "shards" / "x-00002.tar")
    with pytest.raises(
        DataError, match=r"x-00002\.tar: changed since it was encoded: 1 samples, were 4; sha256 .*, was"
    ):
        open_data(tmp_path / "live")


def test_a_forgotten_scale_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match="scaling factor forgotten"):
        encode_live(SOURCE, FakeAutoencoder(0.1), FakeTextEncoder(), tmp_path)

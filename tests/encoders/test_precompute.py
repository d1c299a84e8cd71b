from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.encoders.fakes import FakeAutoencoder, FakeTextEncoder

from isocost.data import scenes
from isocost.data.images import open_images, square, square_images
from isocost.encoders import precompute as module
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import encode_share, precompute
from isocost.errors import DataError, SpecError
from isocost.specs import DataSource, SceneOptions


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "IMAGES_PER_SHARD", 32)
    monkeypatch.setattr(module, "PIXELS_PER_CALL", 10 * 16 * 16)
    monkeypatch.setattr(module, "CAPTIONS_PER_CALL", 7)


SOURCE = DataSource(resolution=16, images=75, seed=5, scenes=SceneOptions(groups=1))


def test_scenes_round_trip(tmp_path):
    text_encoder, progress = FakeTextEncoder(), []
    data = precompute(
        SOURCE, FakeAutoencoder(), text_encoder, tmp_path, progress=lambda done, total: progress.append((done, total))
    )
    drawn = [scenes.scene(5, i, 16, SOURCE.scenes) for i in range(75)]
    assert len(data) == 75 and data.captions == [s.caption for s in drawn]
    expected = FakeAutoencoder().encode(np.stack([s.image for s in drawn])).astype(np.float16)
    np.testing.assert_array_equal(data.latents(range(75)), expected)
    order = np.random.default_rng(0).integers(0, 75, 40)
    np.testing.assert_array_equal(data.latents(order), expected[order])
    assert data.latents(order).dtype == np.float32
    np.testing.assert_array_equal(data.contexts(order), FakeTextEncoder().encode([drawn[i].caption for i in order]))
    np.testing.assert_array_equal(data.null_context, np.zeros((5, 3)))
    assert sorted(text_encoder.seen) == sorted({"", *data.captions}), "each distinct caption is encoded once"
    assert progress[-1] == (75, 75) and [done for done, _ in progress] == sorted(done for done, _ in progress)


def test_header_and_spec(tmp_path):
    data = precompute(SOURCE, FakeAutoencoder(), FakeTextEncoder(), tmp_path)
    latents = data.latents(range(75)).astype(np.float64)
    np.testing.assert_allclose(data.header["mean"], latents.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.header["std"], latents.std((0, 2, 3)), rtol=1e-12)
    assert data.header["autoencoder"] == "ae" and data.header["schema"] == 1 and data.header["split"] == "train"
    spec = data.spec
    assert (spec.images, spec.latent_shape, spec.context_shape) == (75, (4, 4, 4), (5, 3))
    again = precompute(SOURCE, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "again")
    assert again.spec == spec and LatentShards(tmp_path).spec == spec
    other = precompute(SOURCE.model_copy(update={"seed": 6}), FakeAutoencoder(), FakeTextEncoder(), tmp_path / "other")
    assert other.spec.digest_of_shards != spec.digest_of_shards


def test_resumes_by_shard_and_ends_with_the_same_bytes(tmp_path):
    whole = precompute(SOURCE, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "whole")

    class Killed(FakeAutoencoder):
        def encode(self, images):
            if self.calls == 5:
                raise KeyboardInterrupt
            return super().encode(images)

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        precompute(SOURCE, Killed(), FakeTextEncoder(), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["latents-00000.safetensors"]
    with pytest.raises(DataError, match=r"header\.json: missing.*not ended"):
        LatentShards(folder)
    autoencoder = FakeAutoencoder()
    resumed = precompute(SOURCE, autoencoder, FakeTextEncoder(), folder)
    assert autoencoder.calls == 4 + 2, "batches of 10: only the second and third shard"
    assert resumed.header == whole.header
    assert precompute(SOURCE, autoencoder, FakeTextEncoder(), folder).header == whole.header and autoencoder.calls == 6


def test_a_shard_of_other_encoders_is_not_taken_for_done(tmp_path):
    fresh = precompute(SOURCE, FakeAutoencoder(3.0, "new"), FakeTextEncoder(), tmp_path / "fresh")
    folder = tmp_path / "mixed"
    precompute(SOURCE, FakeAutoencoder(), FakeTextEncoder(), folder)
    with pytest.raises(DataError, match="holds other data \\(autoencoder differ\\)"):
        precompute(SOURCE, FakeAutoencoder(3.0, "new"), FakeTextEncoder(), folder)
    (folder / "header.json").unlink()
    assert precompute(SOURCE, FakeAutoencoder(3.0, "new"), FakeTextEncoder(), folder).header == fresh.header


@pytest.mark.parametrize("scale", [0.1, 40.0])
def test_forgotten_scaling_is_refused(tmp_path, scale):
    with pytest.raises(DataError, match="scaling factor forgotten"):
        precompute(SOURCE, FakeAutoencoder(scale), FakeTextEncoder(), tmp_path)
    assert len(precompute(SOURCE, FakeAutoencoder(scale), FakeTextEncoder(), tmp_path, check_scale=False)) == 75


def test_encodings_that_fp16_cannot_hold(tmp_path):
    with pytest.raises(DataError, match="images 0 to 9: not finite in fp16"):
        precompute(SOURCE, FakeAutoencoder(1e6), FakeTextEncoder(), tmp_path)


def photographs(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((30 + i, 20)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"photograph {i % 3}")


def test_files(tmp_path):
    photographs(tmp_path / "train", 6)
    photographs(tmp_path / "val", 2)
    source = DataSource(
        kind="images", resolution=16, train=(str(tmp_path / "train"),), val=(str(tmp_path / "val"),), images=5
    )
    data = precompute(source, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "out")
    assert data.captions == [f"photograph {i % 3}" for i in range(5)]
    images = open_images(source.train)
    expected = FakeAutoencoder(12.0).encode(square_images(images, range(5), 16))
    np.testing.assert_allclose(data.latents(range(5)), expected, atol=2e-3)
    assert len(precompute(source, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "val-out", split="val")) == 2

    (tmp_path / "train" / "3.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"3\.png: not an image"):
        precompute(source, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "broken")
    many = source.model_copy(update={"images": 7})
    with pytest.raises(DataError, match="7 images are asked for, but there are 6"):
        precompute(many, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "many")
    with pytest.raises(SpecError, match=r"data\.test"):
        precompute(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "test", split="test")
    with pytest.raises(SpecError, match="no split 'val'"):
        precompute(SOURCE, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "scenes", split="val")


def test_square():
    ramp = np.zeros((40, 61, 3), np.uint8)
    ramp[:, :, 0] = np.arange(61) * 4
    np.testing.assert_array_equal(square(ramp, 40), ramp[:, 10:50])
    small = square(ramp, 10)
    np.testing.assert_allclose(small[5, 2:8, 0], ramp[0, 10:50, 0].reshape(10, 4).mean(1)[2:8], atol=1)
    checkers = np.tile(np.indices((64, 64)).sum(0) % 2 * 255, (3, 1, 1)).transpose(1, 2, 0).astype(np.uint8)
    assert np.abs(square(checkers, 16).astype(int) - 128).max() <= 2, "finer than the target's pixels: plain grey"
    assert square(ramp, 80).shape == (80, 80, 3)


def test_nothing_is_left_behind_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        precompute(SOURCE, FakeAutoencoder(), FakeTextEncoder(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_shares_of_several_processes_make_the_same_set(tmp_path):
    whole = precompute(SOURCE, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "whole")
    for share in (1, 0):
        encode_share(SOURCE, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "shared", share, 2)
    finishing = FakeAutoencoder()
    together = precompute(SOURCE, finishing, FakeTextEncoder(), tmp_path / "shared")
    assert together.header == whole.header
    assert finishing.calls == 0

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from tests.encoders.fakes import FakeAutoencoder, FakeTextEncoder

from isocost.data import scenes
from isocost.data.cache import Cache, RemoteFile, the_cache
from isocost.data.images import open_images, square, square_images
from isocost.data.shards import write_shards
from isocost.encoders import precompute as module
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import Share, encode_share, precompute, refuse_changed
from isocost.errors import DataError, SpecError
from isocost.specs import DataSource, Filter, SceneOptions


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
    assert sorted(path.name for path in folder.iterdir()) == ["latents-00000.json", "latents-00000.safetensors"]
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


@pytest.fixture(params=["once", "each_file"])
def source(request) -> DataSource:
    return SOURCE.model_copy(update={"embeddings": request.param})


def test_shares_of_several_processes_make_the_same_set(source, tmp_path):
    """Whoever finds all shards there writes the header; nobody else, and nobody encodes anything twice."""
    whole = precompute(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "whole")
    encoders, folder = [FakeAutoencoder() for _ in range(4)], tmp_path / "shared"

    def share(number: int, of: int) -> Share:
        return encode_share(source, encoders[number], FakeTextEncoder(), folder, number, of)

    assert share(2, 3) == (1, 3, False) and share(0, 3) == (2, 3, False)
    assert not (folder / "header.json").exists()
    assert share(3, 4) == (2, 3, False), "a share without work"
    assert share(1, 3) == (3, 3, True)
    assert [encoder.calls for encoder in encoders] == [4, 4, 2, 0]
    together = LatentShards(folder)
    assert together.header == whole.header and together.captions == whole.captions
    assert sorted(path.name for path in folder.glob("*.json")) == ["header.json"]
    assert share(1, 2) == (3, 3, True) and encoders[1].calls == 4
    with pytest.raises(SpecError, match="share 3/3: 3 shares are numbered 0 to 2"):
        share(3, 3)


def test_a_share_that_died_anywhere_is_done_again(source, tmp_path, monkeypatch):
    """Killed before a shard, after it and before its note, and while the header is written, by changing numbers of
    processes: the set is the same."""
    whole = precompute(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "whole")
    folder = tmp_path / "shared"

    def share(number: int, of: int) -> Share:
        return encode_share(source, FakeAutoencoder(), FakeTextEncoder(), folder, number, of)

    def die(*_):
        raise KeyboardInterrupt

    for where, number in (("encode_images", 0), ("_write", 1), ("_Work._note", 1), ("_Work.finish", 0)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"isocost.encoders.precompute.{where}", die)
            share(number, 2)
        assert not (folder / "header.json").exists()
    assert share(1, 2).finished and LatentShards(folder).header == whole.header


def test_two_that_finish_at_once_write_the_same(source, tmp_path):
    for share in (0, 1):
        encode_share(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path, share, 3)
    barrier = threading.Barrier(2)

    class Slow(FakeAutoencoder):
        def encode(self, images):
            if self.calls == 0:
                barrier.wait(30)
            return super().encode(images)

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(encode_share, source, Slow(), FakeTextEncoder(), tmp_path, 2, 3) for _ in range(2)]
        assert all(task.result().finished for task in tasks)
    LatentShards(tmp_path).verify()


def test_filters_choose_what_is_encoded(tmp_path):
    photographs(tmp_path / "train", 6)
    rules = (Filter(field="width", min=32, max=34),)
    source = DataSource(kind="images", resolution=16, train=(str(tmp_path / "train"),), filters=rules)
    data = precompute(source, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "out")
    assert data.captions == ["photograph 2", "photograph 0", "photograph 1"]
    assert data.header["filters"]["kept"] == 3 and data.header["filters"]["rules"][0]["dropped"] == 3
    images = open_images(source.train)
    expected = FakeAutoencoder(12.0).encode(square_images(images, [2, 3, 4], 16))
    np.testing.assert_allclose(data.latents(range(3)), expected, atol=2e-3)
    fewer = source.model_copy(update={"images": 2})
    assert precompute(fewer, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "fewer").spec.images == 2
    with pytest.raises(DataError, match="4 images are asked for, but there are 3 that pass the filters"):
        precompute(source.model_copy(update={"images": 4}), FakeAutoencoder(), FakeTextEncoder(), tmp_path / "many")
    others = source.model_copy(update={"filters": ()})
    with pytest.raises(DataError, match=r"holds other data \(source, images differ\)"):
        precompute(others, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "out")


def test_files_that_changed_since_they_were_encoded_are_named(tmp_path):
    photographs(tmp_path / "train", 3)
    photographs(tmp_path / "more", 1)
    source = DataSource(kind="images", resolution=16, train=(str(tmp_path / "train"), str(tmp_path / "more")), images=3)
    encoders = FakeAutoencoder(12.0), FakeTextEncoder()
    precompute(source, *encoders, tmp_path / "data" / "a")
    refuse_changed(source, *encoders, [tmp_path / "data" / "a", tmp_path / "data" / "nothing"])
    (tmp_path / "train" / "2.png").unlink()
    message = r"train: changed since it was encoded: 2 samples, were 3; sha256 .*: bring the old files back; .*data/a"
    with pytest.raises(DataError, match=message):
        refuse_changed(source, *encoders, [tmp_path / "data" / "a"])
    with pytest.raises(DataError, match=r"data/a: holds other data \(source differ\): .*train: changed since"):
        precompute(source, *encoders, tmp_path / "data" / "a")
    elsewhere = source.model_copy(update={"train": source.train[1:]})
    refuse_changed(elsewhere, *encoders, [tmp_path / "data" / "a"])


def test_remote_shards_encode_as_local_ones(tmp_path, monkeypatch):
    """And those of the next piece of work come while this one is encoded."""
    monkeypatch.setenv("ISOCOST_CACHE", str(tmp_path / "cache"))
    photographs(tmp_path / "train", 40)
    samples = [
        {"__key__": path.stem, "png": path.read_bytes(), "txt": path.with_suffix(".txt").read_text()}
        for path in sorted((tmp_path / "train").glob("*.png"))
    ]
    url = f"memory://{tmp_path.name}"
    for path in write_shards(samples, tmp_path / "shards", "x", per_shard=15):
        for part in (path, path.with_name(path.name + ".index.json")):
            with fsspec.open(f"{url}/{part.name}", "wb") as file:
                file.write(part.read_bytes())
    here = DataSource(kind="images", resolution=16, train=(str(tmp_path / "shards"),))
    there = here.model_copy(update={"train": (url,), "embeddings": "each_file"})
    expected = precompute(here, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "here")
    asked: list[RemoteFile] = []
    monkeypatch.setattr(Cache, "prefetch", lambda _, files: asked.extend(files))
    share = encode_share(there, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "there", 1, 2)
    assert (share.done, len(the_cache()._files())) == (1, 1), "this share needs the last tar alone"
    assert {file.url for file in asked} == {f"{url}/x-00002.tar"}
    data = precompute(there, FakeAutoencoder(12.0), FakeTextEncoder(), tmp_path / "there")
    np.testing.assert_array_equal(data.latents(range(40)), expected.latents(range(40)))
    np.testing.assert_array_equal(data.contexts(range(40)), expected.contexts(range(40)))
    assert [source["place"] for source in data.header["sources"]] == [f"{url}/x-0000{i}.tar" for i in range(3)]
    assert {file.url for file in asked} == {f"{url}/x-0000{i}.tar" for i in range(3)}

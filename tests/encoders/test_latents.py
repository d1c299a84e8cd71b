from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tests.encoders.fakes import FakeAutoencoder, FakeTextEncoder

from isocost.data.cache import the_cache
from isocost.data.sampler import indices, next_shards
from isocost.encoders import precompute as module
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import precompute
from isocost.errors import DataError
from isocost.specs import DataSource, SceneOptions


@pytest.fixture
def data(tmp_path, monkeypatch) -> LatentShards:
    """75 images in three shards."""
    monkeypatch.setattr(module, "IMAGES_PER_SHARD", 32)
    return precompute(DataSource(resolution=16, images=75), FakeAutoencoder(), FakeTextEncoder(), tmp_path)


def test_damaged_shards(data):
    data.verify()
    path = data.folder / "latents-00001.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(DataError, match=r"latents-00001\.safetensors: damaged"):
        LatentShards(data.folder).verify()
    path.write_bytes(original[:-100])
    with pytest.raises(DataError, match=r"latents-00001\.safetensors: .*truncated"):
        LatentShards(data.folder)
    path.write_bytes(b"not a shard")
    with pytest.raises(DataError, match=r"latents-00001\.safetensors: not a safetensors file"):
        LatentShards(data.folder)
    path.unlink()
    with pytest.raises(DataError, match=r"latents-00001\.safetensors: this shard is missing"):
        LatentShards(data.folder)


def test_latents_of_another_size_than_the_header_says(data):
    header = json.loads((data.folder / "header.json").read_text())
    header["latent_shape"] = [4, 8, 8]
    (data.folder / "header.json").write_text(json.dumps(header))
    with pytest.raises(DataError, match=r"latents-00000\.safetensors: 'latents' has shape \(32, 4, 4, 4\)"):
        LatentShards(data.folder)


def test_indices_out_of_range(data):
    with pytest.raises(IndexError):
        data.latents([75])
    assert data.latents([]).shape == (0, 4, 4, 4)


# --- a remote folder ---


@pytest.fixture(params=["once", "each_file"])
def everywhere(request, tmp_path, monkeypatch):
    """120 images in four shards: here, in a store, and the cache in between."""
    monkeypatch.setattr(module, "IMAGES_PER_SHARD", 32)
    monkeypatch.setenv("ISOCOST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("isocost.data.remote.SECONDS_BETWEEN_TRIES", ())
    source = DataSource(resolution=16, images=120, embeddings=request.param, scenes=SceneOptions(groups=1))
    here = precompute(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "here")
    url = f"memory://latents-{tmp_path.name}-{request.param}"
    upload(here.folder, url)
    return here, url


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        with fsspec.open(f"{url}/{path.name}", "wb") as file:
            file.write(path.read_bytes())


def fetched() -> list[str]:
    return sorted(path.name.partition("-")[2][:13] for path in the_cache()._files())


def test_a_remote_folder_reads_as_the_local_one(everywhere):
    here, url = everywhere
    there = LatentShards(url)
    assert (there.spec, there.shards, len(there)) == (here.spec, (32, 32, 32, 24), 120)
    assert fetched() == [], "the header alone was read"
    order = np.random.default_rng(0).permutation(120)
    for part in np.split(order, 5):
        np.testing.assert_array_equal(there.latents(part), here.latents(part))
        np.testing.assert_array_equal(there.contexts(part), here.contexts(part))
    np.testing.assert_array_equal(there.null_context, here.null_context)
    assert there.captions == here.captions
    there.verify()


@pytest.mark.parametrize("everywhere", ["each_file"], indirect=True)
def test_a_training_order_in_windows_fetches_few_shards_at_a_time(everywhere):
    """Every shard once an epoch, and, where each holds its own embeddings, only those of the window and the next."""
    here, url = everywhere
    there = LatentShards(url)
    for seen in range(0, 120, 8):
        batch = indices(120, 3, seen, 8, shards=there.shards, window=24)
        np.testing.assert_array_equal(there.contexts(batch), here.contexts(batch))
        np.testing.assert_array_equal(there.latents(batch), here.latents(batch))
        if seen == 0:
            assert len(fetched()) <= 2
            there.prefetch((), next_shards(120, 3, seen, shards=there.shards, window=24))
    assert len(fetched()) == 4


def test_shards_are_fetched_ahead(everywhere):
    there = LatentShards(everywhere[1])
    there.prefetch([100], shards=[1])
    while the_cache()._queued:
        pass
    assert fetched() == ["latents-00001", "latents-00003"]


def test_remote_shards_that_are_missing_cut_or_changed(everywhere):
    here, url = everywhere
    fs, path = fsspec.core.url_to_fs(url)
    whole = (here.folder / "latents-00002.safetensors").read_bytes()
    fs.pipe_file(f"{path}/latents-00002.safetensors", whole[:-1])
    with pytest.raises(
        DataError, match=rf"{url}/latents-00002\.safetensors: \d+ bytes, not \d+: truncated, or rewritten"
    ):
        LatentShards(url)
    fs.pipe_file(f"{path}/latents-00002.safetensors", whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        DataError, match=rf"{url}/latents-00002\.safetensors: its bytes are not those that were indexed"
    ):
        LatentShards(url).latents([70])
    fs.rm(f"{path}/latents-00002.safetensors")
    with pytest.raises(DataError, match=rf"{url}/latents-00002\.safetensors: this shard is missing"):
        LatentShards(url)
    with pytest.raises(DataError, match=r"memory://nowhere/header\.json: missing"):
        LatentShards("memory://nowhere")


def test_embeddings_in_each_file_are_those_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_PER_SHARD", 32)
    source = DataSource(resolution=16, images=75)
    once = precompute(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "once")
    each = source.model_copy(update={"embeddings": "each_file"})
    each = precompute(each, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "each")
    order = np.random.default_rng(0).permutation(75)
    np.testing.assert_array_equal(each.contexts(order), once.contexts(order))
    np.testing.assert_array_equal(each.latents(order), once.latents(order))
    np.testing.assert_array_equal(each.null_context, once.null_context)
    assert each.captions == once.captions and each.header["schema"] == 2 and once.header["schema"] == 1
    assert each.spec.digest_of_shards != once.spec.digest_of_shards
    with pytest.raises(DataError, match="holds other data \\(schema differ\\)"):
        precompute(source, FakeAutoencoder(), FakeTextEncoder(), tmp_path / "each")

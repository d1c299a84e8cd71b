from __future__ import annotations

import json

import pytest
from tests.encoders.fakes import FakeAutoencoder, FakeTextEncoder

from isocost.encoders import precompute as module
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import precompute
from isocost.errors import DataError
from isocost.specs import DataSource


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

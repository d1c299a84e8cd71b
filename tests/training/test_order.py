"""Training in windows of shards, from a remote store: what it sees, and that nothing else changes."""

from __future__ import annotations

import json

import fsspec
import pytest
from tests.training.conftest import Letters, Pixels

from isocost.data import sampler
from isocost.data.cache import the_cache
from isocost.encoders import precompute
from isocost.encoders.latents import LatentShards
from isocost.specs import DataSource
from isocost.training import loop
from isocost.training.state import Checkpoint


@pytest.fixture
def data(tmp_path, monkeypatch) -> LatentShards:
    """40 images in five shards, each with its own embeddings."""
    monkeypatch.setattr(precompute, "IMAGES_PER_SHARD", 8)
    source = DataSource(resolution=16, images=40, embeddings="each_file")
    return precompute.precompute(source, Pixels(), Letters(), tmp_path / "latents")


@pytest.fixture
def remote(data, tmp_path, monkeypatch) -> LatentShards:
    """The same, in a store."""
    monkeypatch.setenv("ISOCOST_CACHE", str(tmp_path / "cache"))
    for path in data.folder.iterdir():
        with fsspec.open(f"memory://{tmp_path.name}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    return LatentShards(f"memory://{tmp_path.name}")


def weights(checkpoint) -> str:
    return Checkpoint.load(checkpoint).ref("ema").content_digest


def test_a_run_from_afar_that_is_interrupted_is_the_run_from_here(data, remote, make_spec, tmp_path):
    """Stopped in the middle of a window and of an epoch."""
    spec = make_spec(data, window=12, images=96, checkpoints=())
    whole = weights(loop.train(spec, data, tmp_path / "here"))

    def stop(line) -> None:
        if line["images_seen"] == 56:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(spec, remote, tmp_path / "there", progress=stop, save_every_images=16)
    assert weights(loop.train(spec, remote, tmp_path / "there")) == whole
    everywhere = make_spec(data, images=96, checkpoints=())
    assert weights(loop.train(everywhere, data, tmp_path / "everywhere")) != whole


def test_what_a_step_asks_for_is_the_windowed_order_and_its_shards_come_ahead(remote, make_spec, tmp_path, monkeypatch):
    spec, asked = make_spec(remote, window=12, images=40, checkpoints=()), []
    monkeypatch.setattr(remote, "latents", lambda part: asked.extend(part) or LatentShards.latents(remote, part))
    loop.train(spec, remote, tmp_path / "run")
    assert asked == sampler.indices(40, spec.seed, 0, 40, shards=remote.shards, window=12).tolist()
    assert sorted(asked) == list(range(40))
    assert len(the_cache()._files()) == 5
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(log) == 5

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isocost.errors import DataError
from isocost.training import loop, state
from isocost.training.state import Checkpoint


@pytest.fixture
def saved(data, make_spec, tmp_path) -> Path:
    run = loop.start(make_spec(data))
    loop.step(run, make_spec(data), data, tmp_path)
    return state.save(run, make_spec(data), tmp_path)


def test_restores_every_tensor(data, make_spec, saved):
    spec = make_spec(data)
    original = loop.start(spec)
    loop.step(original, spec, data, saved)
    restored = loop.start(spec)
    Checkpoint.load(saved).restore(restored)
    assert restored.images_seen == 8
    lines = [loop.step(run, spec, data, saved) for run in (original, restored)]
    assert lines[0] == lines[1]
    for a, b in zip(original.module.parameters(), restored.module.parameters(), strict=True):
        assert torch.equal(a, b)
        for part in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(original.optimizer.state[a][part], restored.optimizer.state[b][part])
    for name, average in original.average.state_dict().items():
        assert torch.equal(average, restored.average.state_dict()[name])


def test_network_and_reference(data, make_spec, saved):
    checkpoint = Checkpoint.load(saved)
    assert checkpoint.spec == make_spec(data) and checkpoint.images_seen == 8
    network = checkpoint.network("raw")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    for name, tensor in checkpoint.weights("raw").items():
        assert torch.equal(network.state_dict()[name], tensor)
    ema, raw = checkpoint.ref(), checkpoint.ref("raw")
    assert (ema.weights, raw.weights, ema.images_seen) == ("ema", "raw", 8)
    assert ema.content_digest != raw.content_digest and len(ema.content_digest) == 64


def test_saving_twice_gives_the_same_bytes(data, make_spec, saved, tmp_path):
    run = loop.start(make_spec(data))
    Checkpoint.load(saved).restore(run)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    again = state.save(run, make_spec(data), tmp_path)
    assert again == saved and {path.name: path.read_bytes() for path in again.iterdir()} == before
    assert [path.name for path in again.parent.iterdir()] == [saved.name]


def test_damage_is_named(saved):
    path = saved / "ema.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(DataError, match=r"ema\.safetensors: damaged"):
        Checkpoint.load(saved).network()
    with pytest.raises(DataError, match=rf"ema\.safetensors: damaged.* delete {saved} and run the same command again"):
        Checkpoint.load(saved).verify()
    Checkpoint.load(saved).verify(state.RAW)
    path.unlink()
    with pytest.raises(DataError, match=r"ema\.safetensors: missing"):
        Checkpoint.load(saved).weights()
    (saved / "spec.yaml").write_text((saved / "spec.yaml").read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(DataError, match=r"not the spec that state\.json was written for"):
        Checkpoint.load(saved)
    (saved / "state.json").unlink()
    with pytest.raises(DataError, match=r"state\.json: not a checkpoint"):
        Checkpoint.load(saved)

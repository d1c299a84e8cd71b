"""The loop: what it leaves alone, what it refuses, and going on after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isocost.data import scenes
from isocost.encoders.train import steps, train_autoencoder, train_classifier, train_clip
from isocost.errors import TrainingError
from isocost.runlog import images_seen, read_log

VALUES = {"background": scenes.COLOURS}


@pytest.fixture
def trainers(small):
    """Kind -> train(images, folder, work): the encoder's digest."""
    return {
        "autoencoder": lambda images, folder, work: (
            train_autoencoder(images, small.autoencoder, 0, folder, work=work).digest
        ),
        "clip": lambda images, folder, work: (
            train_clip(images, small.captions, small.clip, 0, folder, work=work).digest
        ),
        "classifier": lambda images, folder, work: (
            train_classifier(images, small.attributes, VALUES, small.classifier, 0, folder, work=work).digest
        ),
    }


def losses(work: Path) -> list[tuple[int, float]]:
    return [(line["images_seen"], line["loss"]) for line in read_log(work)]


@pytest.mark.parametrize("kind", ["autoencoder", "clip", "classifier"])
def test_a_stopped_and_resumed_training_is_the_same_training(small, trainers, stopping, tmp_path, kind):
    train, batch = trainers[kind], getattr(small, kind).batch
    whole, work = tmp_path / "whole", tmp_path / "work"
    whole.mkdir()
    work.mkdir()
    expected = train(small.images, tmp_path / "a", whole)
    with pytest.raises(SystemExit):
        train(stopping(small.images, 5 * batch), tmp_path / "b", work)
    assert images_seen(work) == 6 * batch and not (tmp_path / "b").exists()
    torch.rand(3)
    assert train(small.images, tmp_path / "b", work) == expected
    assert losses(work) == losses(whole) and len(losses(work)) == 12
    assert len(list(work.glob("state-*"))) == 1


def test_a_training_that_has_ended_is_not_done_again(small, trainers, tmp_path):
    def refused(numbers):
        assert numbers.start >= small.autoencoder.images, "trained again"
        return small.images(numbers)

    digest = trainers["autoencoder"](small.images, tmp_path / "a", tmp_path)
    assert trainers["autoencoder"](refused, tmp_path / "a", tmp_path) == digest


@pytest.mark.parametrize("damage", ["weights", "json", "settings"])
def test_a_state_that_cannot_be_used_is_named_and_passed_over(small, trainers, stopping, tmp_path, damage):
    train = trainers["classifier"]
    expected = train(small.images, tmp_path / "a", None)
    with pytest.raises(SystemExit):
        train(stopping(small.images, 64), tmp_path / "b", tmp_path)
    if damage == "weights":
        path = next(tmp_path.glob("state-*"))
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "json":
        (tmp_path / steps.STATE).write_text("{")
    else:
        kept = json.loads((tmp_path / steps.STATE).read_text())
        (tmp_path / steps.STATE).write_text(json.dumps(kept | {"plan": "another"}))
    with pytest.warns(UserWarning, match="training begins again"):
        assert train(small.images, tmp_path / "b", tmp_path) == expected


def test_other_settings_or_another_seed_are_another_training(small, stopping, tmp_path):
    with pytest.raises(SystemExit):
        train_autoencoder(stopping(small.images, 8), small.autoencoder, 0, tmp_path / "a", work=tmp_path)
    with pytest.warns(UserWarning, match="other settings"):
        train_autoencoder(small.images, replace(small.autoencoder, images=16), 0, tmp_path / "a", work=tmp_path)
    with pytest.warns(UserWarning, match="other settings"):
        train_autoencoder(small.images, replace(small.autoencoder, images=16), 1, tmp_path / "a", work=tmp_path)


def test_a_full_disk_leaves_the_state_before(small, stopping, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        train_autoencoder(stopping(small.images, 8), small.autoencoder, 0, tmp_path / "a", work=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("state*")}

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(steps, "atomic_write", full)
    with pytest.raises(TrainingError, match=r"state-000000024\.safetensors: the state could not be saved.*No space"):
        train_autoencoder(small.images, small.autoencoder, 0, tmp_path / "a", work=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("state*")} == before


def test_training_leaves_the_global_generator_alone(small, trainers, tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    trainers["classifier"](small.images, tmp_path, None)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_loss_that_is_not_finite_stops_training(small, tmp_path):
    settings = replace(small.classifier, images=64, lr=1e30)
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at step \d"):
        train_classifier(small.images, small.attributes, VALUES, settings, 0, tmp_path)

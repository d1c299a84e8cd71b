"""Training encoders: deterministic, learning, saved; on tiny settings, and the figures on the shipped cards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from isocost.data import scenes
from isocost.encoders import train
from isocost.encoders.autoencoder import load_autoencoder, psnr
from isocost.encoders.classifier import load_classifier
from isocost.encoders.text import load_clip, load_text_encoder
from isocost.encoders.weights import ASSETS, shipped
from isocost.errors import SpecError, TrainingError
from isocost.specs import SceneOptions

OPTIONS = SceneOptions(groups=1)
TINY_AUTOENCODER = train.AutoencoderSettings(channels=(8, 8), images=960, batch=8, statistics_images=64)
SHORT_AUTOENCODER = train.AutoencoderSettings(channels=(8, 8), images=32, batch=8, statistics_images=16)
TINY_CLIP = train.ClipSettings(
    text_hidden=16, text_layers=1, image_hidden=16, image_layers=1, heads=2, patch=8, projection=8, vocabulary=600,
    tokenizer_captions=64, images=1600, batch=16,
)  # fmt: skip
TINY_CLASSIFIER = train.ClassifierSettings(width=4, resolution=16, images=480, batch=16)


def _images(numbers: range) -> np.ndarray:
    return scenes.draw(0, numbers, 16, OPTIONS)


def _captions(numbers: range) -> list[str]:
    return [caption for caption, _ in scenes.describe_all(0, numbers, OPTIONS)]


def _attributes(numbers: range) -> list[dict]:
    return [attributes for _, attributes in scenes.describe_all(0, numbers, OPTIONS)]


def _quiet(line: str) -> None:
    pass


def test_training_repeats_in_its_seed_whatever_the_global_generator(tmp_path):
    digests = []
    for seed in (0, 0, 1):
        torch.rand(7)
        digests.append(train.train_autoencoder(_images, SHORT_AUTOENCODER, seed, tmp_path / "a", _quiet).digest)
    assert digests[0] == digests[1] != digests[2]


def test_autoencoder_learns_and_standardises(tmp_path):
    one = train.train_autoencoder(_images, TINY_AUTOENCODER, 0, tmp_path / "one", _quiet)
    images = _images(range(1000, 1064))
    latents = one.encode(images)
    assert np.abs(latents.mean((0, 2, 3))).max() < 0.25 and np.abs(latents.std((0, 2, 3)) - 1).max() < 0.25
    mean_image = np.broadcast_to(images.mean((0, 1, 2)).round().astype(np.uint8), images.shape)
    assert psnr(images, one.decode(latents)) > psnr(images, mean_image) + 2
    assert load_autoencoder(tmp_path / "one").digest == one.digest


def test_training_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train.train_classifier(_images, _attributes, {"groups": (1, 2)}, TINY_CLASSIFIER, 0, tmp_path, _quiet)
    assert torch.equal(before, torch.random.get_rng_state())


def test_clip_learns_and_its_text_tower_conditions(tmp_path):
    lines: list[str] = []
    clip = train.train_clip(_images, _captions, TINY_CLIP, 0, tmp_path, lines.append)
    assert "step 100/100" in lines[-1]
    images, captions = _images(range(160)), _captions(range(160))
    cosine = clip.image_features(images, normalised=True) @ clip.text_features(captions, normalised=True).T
    own, other = np.diag(cosine).mean(), cosine.mean()
    assert own > other + 0.1
    assert load_clip(tmp_path).digest == clip.digest
    assert load_text_encoder(tmp_path).context_shape == (24, 16)


def test_equal_captions_are_not_each_other_s_negatives():
    logits = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 4.0]])
    twins = train._contrast(logits, ["red", "red", "blue"])
    apart = torch.nn.functional.cross_entropy(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
    third = torch.nn.functional.cross_entropy(torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([2]))
    assert float(twins) == pytest.approx(float((2 * apart + third) / 3), rel=1e-5)
    assert float(train._contrast(logits, ["red", "rose", "blue"])) > float(twins) + 0.3


def test_words_loss_is_least_where_the_caption_s_words_share_the_weight():
    ids = torch.tensor([[6, 0, 2, 2, 7, 7]])  # start, three words of which two are equal, end, padding
    right = torch.full((1, 8), -20.0)
    right[0, [0, 2]] = 0
    assert float(train._words_loss(right, ids)) == pytest.approx(np.log(2), abs=1e-4)
    assert float(train._words_loss(torch.zeros(1, 8), ids)) == pytest.approx(np.log(8), abs=1e-4)


def test_classifier_learns_and_saves(tmp_path):
    values = {"background": scenes.COLOURS, "colour2": scenes.COLOURS}  # scenes of one group never have the second
    classifier = train.train_classifier(_images, _attributes, values, TINY_CLASSIFIER, 0, tmp_path, _quiet)
    right = classifier.correct(_images(range(2000, 2200)), _attributes(range(2000, 2200)))
    assert np.nanmean(right["background"]) > 0.4
    assert np.isnan(right["colour2"]).all()
    assert load_classifier(tmp_path).digest == classifier.digest


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    settings = train.ClassifierSettings(width=4, resolution=16, images=64, batch=16, lr=1e30)
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at step \d"):
        train.train_classifier(_images, _attributes, {"background": scenes.COLOURS}, settings, 0, tmp_path, _quiet)


def test_cards_tell_what_was_measured():
    assert set(train.ASSETS) == set(shipped())
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert size < 8e6
    for name in train.ASSETS:
        metrics = json.loads((ASSETS / name / "metrics.json").read_text())
        card = (ASSETS / name / "README.md").read_text()
        assert "Apache-2.0" in card and f"isocost.encoders.train FOLDER {name}" in card
        assert f"| parameters | {metrics['parameters']} |" in card
    for name in ("scenes-clip-condition", "scenes-clip-score"):
        assert "The CLIP that conditions never scores" in (ASSETS / name / "README.md").read_text()


def test_a_wrong_asset_name_is_refused(tmp_path):
    with pytest.raises(SpecError, match="Did you mean 'scenes-vae'"):
        train.train_assets(tmp_path, ["scenes-va"])

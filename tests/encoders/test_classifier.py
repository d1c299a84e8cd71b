"""Attribute classifier: batch independence, round trip, and what the shipped one reads on held-out scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isocost.data import scenes
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.classifier import AttributeClassifier, AttributeNet, load_classifier
from isocost.errors import DataError
from isocost.specs import SceneOptions

VALUES = {"colour": ("red", "blue", "green"), "count": (1, 2)}


@pytest.fixture(scope="module")
def tiny() -> AttributeClassifier:
    torch.manual_seed(0)
    return AttributeClassifier(AttributeNet({"colour": 3, "count": 2}, 4, 16), VALUES, 4, 16)


def test_logits_by_attribute_in_any_company(tiny):
    images = scenes.draw(0, range(70), 32, SceneOptions())
    logits = tiny.logits(images)
    assert {name: values.shape for name, values in logits.items()} == {"colour": (70, 3), "count": (70, 2)}
    for name, values in tiny.logits(images[65:68]).items():
        assert np.array_equal(values, logits[name][65:68])


def test_correct_compares_and_leaves_out_what_a_scene_lacks(tiny, monkeypatch):
    logits = {"colour": np.eye(3), "count": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])}
    monkeypatch.setattr(tiny, "logits", lambda images: logits)
    rows = [{"colour": "red", "count": 1}, {"colour": "green"}, {"colour": "green", "count": 2}]
    found = tiny.correct(np.zeros((3, 16, 16, 3), np.uint8), rows)
    np.testing.assert_array_equal(found["colour"], [1, 0, 1])
    np.testing.assert_array_equal(found["count"], [1, np.nan, 1])


def test_round_trip_keeps_the_digest(tiny, tmp_path):
    again = load_classifier(tiny.save(tmp_path))
    assert again.digest == tiny.digest and again.attributes == tiny.attributes
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="attribute classifier"):
        load_classifier(tmp_path)


def test_shipped_classifier_reads_scenes_and_their_reconstructions():
    classifier = load_classifier("scenes-attributes")
    assert classifier.attributes == scenes.ATTRIBUTES
    images, described = (
        scenes.draw(9100, range(256), 32, SceneOptions()),
        scenes.describe_all(9100, range(256), SceneOptions()),
    )
    attributes = [found for _, found in described]
    autoencoder = load_autoencoder("scenes-vae")
    for seen, floor in ((images, 0.9), (autoencoder.decode(autoencoder.encode(images)), 0.75)):
        accuracy = {name: np.nanmean(right) for name, right in classifier.correct(seen, attributes).items()}
        for name in ("background", "colour", "shape", "place", "count"):
            assert accuracy[name] > floor, (name, accuracy[name])

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isocost.data import scenes
from isocost.encoders.classifier import load_classifier
from isocost.encoders.train import train_classifier


def test_it_learns_and_saves(small, tmp_path):
    values = {"background": scenes.COLOURS, "colour2": scenes.COLOURS}  # scenes of one group never have the second
    settings = replace(small.classifier, images=480)
    classifier = train_classifier(small.images, small.attributes, values, settings, 0, tmp_path)
    right = classifier.correct(small.images(range(2000, 2200)), small.attributes(range(2000, 2200)))
    assert np.nanmean(right["background"]) > 0.4
    assert np.isnan(right["colour2"]).all()
    assert load_classifier(tmp_path).digest == classifier.digest

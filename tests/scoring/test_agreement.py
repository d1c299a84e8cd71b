from __future__ import annotations

import math

import numpy as np
import pytest
from tests.scoring.synthetic import ATTRIBUTES, LOGITS, WANTED, one_hot

from isocost.errors import DataError, SpecError
from isocost.scoring.agreement import caption_accuracy, chance_levels, clip_score, similarity


def test_clip_score_clamps_each_sample():
    images = np.array([[1.0, 0], [0, 2], [3, 3], [1, 0]], dtype=np.float32)
    texts = np.array([[5.0, 0], [0, -1], [1, 0], [0, 1]], dtype=np.float32)
    estimate = clip_score(images, texts)
    per_image = np.array([100, 0, 100 / math.sqrt(2), 0])
    assert estimate.value == pytest.approx(per_image.mean())
    assert estimate.stderr == pytest.approx(per_image.std(ddof=1) / 2)
    assert estimate.unit == "100 cos" and estimate.higher_is_better and estimate.bias is None
    np.testing.assert_allclose(estimate.influence, per_image - per_image.mean())


def test_bad_clip_features_are_refused():
    good = np.ones((4, 3))
    with pytest.raises(DataError, match="do not pair up"):
        clip_score(good, np.ones((4, 2)))
    with pytest.raises(DataError, match="text features: row 2 is all zeros"):
        clip_score(good, good * [[1], [1], [0], [1]])
    with pytest.raises(DataError, match="text features: NaN"):
        clip_score(good, good * [[1], [np.nan], [1], [1]])


def test_accuracy_counts_only_what_was_asked():
    estimates = caption_accuracy(LOGITS, WANTED, ATTRIBUTES)
    assert list(estimates) == ["accuracy", "accuracy/colour", "accuracy/count"]
    assert estimates["accuracy"].value == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert estimates["accuracy/colour"].value == pytest.approx(2 / 3)
    assert estimates["accuracy/count"].value == pytest.approx(1 / 2)
    for estimate in estimates.values():
        assert estimate.n == len(estimate.influence) == 5 and estimate.influence[4] == 0
    np.testing.assert_allclose(estimates["accuracy/colour"].influence, [5 / 9, -10 / 9, 0, 5 / 9, 0])


def test_accuracys_error_is_the_binomial_one():
    rng = np.random.default_rng(0)
    found = rng.choice(["red", "green"], 2000, p=[0.7, 0.3])
    logits = {"colour": one_hot(list(found), ("red", "green"))}
    wanted = [{"colour": "red"} if i % 4 else {} for i in range(2000)]
    estimate = caption_accuracy(logits, wanted, {"colour": ("red", "green")})["accuracy/colour"]
    share = np.mean(found[np.arange(2000) % 4 > 0] == "red")
    assert estimate.value == pytest.approx(share)
    assert estimate.stderr == pytest.approx(math.sqrt(share * (1 - share) / 1500), rel=1e-3)


def test_an_attribute_that_nobody_asks_for_is_not_scored():
    wanted = [{"colour": "red"}] * 5
    assert list(caption_accuracy(LOGITS, wanted, ATTRIBUTES)) == ["accuracy", "accuracy/colour"]
    assert list(chance_levels(wanted, ATTRIBUTES)) == ["accuracy", "accuracy/colour"]
    with pytest.raises(DataError, match="0 images to average"):
        caption_accuracy(LOGITS, [{}] * 5, ATTRIBUTES)
    with pytest.raises(DataError, match="no prompt asks"):
        chance_levels([{}] * 5, ATTRIBUTES)


def test_bad_logits_and_prompts_are_refused():
    with pytest.raises(SpecError, match=r"colour 'mauve'.*red, green, blue"):
        caption_accuracy(LOGITS, [{"colour": "mauve"}] * 5, ATTRIBUTES)
    with pytest.raises(DataError, match=r"logits of 'colour': expected \[4, 3\], found \[5, 3\]"):
        caption_accuracy(LOGITS, WANTED[:4], ATTRIBUTES)
    with pytest.raises(SpecError, match="unknown attribute of the logits 'count'"):
        caption_accuracy({"colour": LOGITS["colour"]}, WANTED, ATTRIBUTES)
    with pytest.raises(DataError, match="logits of 'count': NaN"):
        caption_accuracy({**LOGITS, "count": LOGITS["count"] * np.nan}, WANTED, ATTRIBUTES)


def test_chance_is_the_most_frequent_value_and_one_in_k():
    levels = chance_levels(WANTED, ATTRIBUTES)
    assert levels["accuracy/colour"].majority == pytest.approx(2 / 3)
    assert levels["accuracy/colour"].uniform == pytest.approx(1 / 3)
    assert levels["accuracy/count"].majority == levels["accuracy/count"].uniform == 0.5
    # always "red, 2": right in 2 of 2 asked, 0 of 1, 0 of 1, 1 of 1
    assert levels["accuracy"].majority == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert levels["accuracy"].uniform == pytest.approx(((1 / 3 + 1 / 2) / 2 + 1 / 3 + 1 / 2 + 1 / 3) / 4)


def test_similarity_is_the_mean_cosine_with_each_images_target():
    features = np.array([[1.0, 0], [0, 2], [3, 3], [1, 0]], dtype=np.float32)
    targets = np.array([[5.0, 0], [0, -1], [1, 0], [0, 1]], dtype=np.float32)
    estimate = similarity(features, targets)
    per_image = np.array([1, -1, 1 / math.sqrt(2), 0])
    assert estimate.value == pytest.approx(per_image.mean())
    assert estimate.stderr == pytest.approx(per_image.std(ddof=1) / 2)
    assert estimate.unit == "cos" and estimate.higher_is_better
    np.testing.assert_allclose(estimate.influence, per_image - per_image.mean())
    with pytest.raises(DataError, match=r"image features \[4, 2\] and target features \[3, 2\] do not pair up"):
        similarity(features, targets[:3])
    with pytest.raises(DataError, match="target features: row 1 is all zeros"):
        similarity(features, targets * [[1], [0], [1], [1]])

from __future__ import annotations

import numpy as np
import pytest

from isocost.data.prompts import OnTheWay, Prompt
from isocost.errors import DataError, SpecError
from isocost.scoring import ways
from isocost.scoring.evaluate import score
from isocost.scoring.metrics import METRICS
from isocost.scoring.results import Scores

ALPHAS = (1.0, 0.5, 0.0)
END = Prompt("id", "text", {})


def places(count: int) -> list[OnTheWay]:
    """Three images of each way; the images of two ways alternate, as studies order them."""
    return [OnTheWay(way, END, END, weight, "linear") for weight in ALPHAS for way in range(count)]


def test_coherence_is_the_better_of_both_clip_scores():
    east, north, both, away = np.array([[1, 0], [0, 1], [1, 1], [-1, -1]], float)
    images = np.stack([east, east, both, away, north, north])  # way 0: east, both, north; way 1: east, away, north
    ends = np.broadcast_to(np.stack([east, north]), (6, 2, 2))
    found = ways.coherence(images, ends, places(2))
    assert found["coherence"].value == pytest.approx(100 * (np.sqrt(0.5) + 0) / 2)
    assert found["coherence"].n == 2 and len(found["coherence"].influence) == 2
    assert [found[f"coherence/{alpha:g}"].value for alpha in (1, 0)] == pytest.approx([100, 100])
    half_gap = 100 * np.sqrt(0.5) / 2
    assert found["coherence"].stderr == pytest.approx(half_gap)  # sd of two values over sqrt(2)


def test_attributes_that_belong_to_an_end():
    values = {"colour": ("red", "green", "blue"), "shape": ("circle", "square")}
    picked = np.array([[0, 0], [0, 1], [1, 0], [2, 0], [1, 1], [1, 0]])  # of each image: colour, shape
    logits = {name: np.eye(len(v))[picked[:, column]] for column, (name, v) in enumerate(values.items())}
    first = [{"colour": "red", "shape": "circle"}] * 6
    second = [{"colour": "green", "shape": "circle"}] * 6  # the shape is shared, and not judged
    found = ways.attribute_coherence(logits, values, places(2), (first, second))
    assert found["attribute-coherence"].value == 0.5  # in the middle: green, which is an end's, and blue, which is not
    assert found["attribute-coherence/1"].value == 1.0
    with pytest.raises(DataError, match="at least 2 are needed"):
        ways.attribute_coherence(logits, values, places(2), (first, first))


def test_a_straight_way_has_no_detour_and_even_steps():
    angles = np.array([0, 0, 0.1, 0.3, 0.2, 0.6])  # way 0 to 0.2, way 1 to 0.6, both by their middle
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[3], [1], [2], [5], [1], [1]])
    chords = 2 * np.sin(np.array([0.1, 0.3]) / 2)
    assert ways.path_length(images, places(2)).value == pytest.approx(np.mean(2 * chords))
    assert ways.largest_jump(images, places(2)).value == pytest.approx(np.mean(chords))
    straight = 2 * np.sin(np.array([0.2, 0.6]) / 2)
    assert ways.detour(images, places(2)).value == pytest.approx(np.sum(2 * chords) / np.sum(straight))
    assert 1 < ways.detour(images, places(2)).value < 1.05
    assert not ways.detour(images, places(2)).higher_is_better


def test_one_jump_is_as_large_as_the_way():
    jumping = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], float)
    assert ways.largest_jump(jumping, places(2)).value == pytest.approx(np.sqrt(2))
    assert ways.detour(jumping, places(2)).value == pytest.approx(1)


def test_the_order_of_images_does_not_matter():
    rng = np.random.default_rng(0)
    images, at, order = rng.standard_normal((12, 5)), places(4), rng.permutation(12)
    for metric in (ways.path_length, ways.detour, ways.largest_jump):
        shuffled = metric(images[order], [at[place] for place in order])
        assert shuffled.value == pytest.approx(metric(images, at).value)


def test_broken_ways_are_refused():
    with pytest.raises(DataError, match="different numbers of images"):
        ways.path_length(np.ones((5, 2)), places(2)[:5])
    with pytest.raises(DataError, match="no way between them"):
        ways.detour(np.ones((6, 2)), places(2))


def test_a_folder_of_images_has_no_ways(tmp_path):
    from isocost.scoring.evaluate import Against
    from isocost.scoring.sets import open_set

    images = open_set(np.zeros((4, 16, 16, 3), np.uint8), "zeros", None)
    assert "places" in METRICS["detour"].needs and Scores
    with pytest.raises(SpecError, match=r"evaluation\.between"):
        score([images], Against(), ["detour"])

from __future__ import annotations

import numpy as np
import pytest

from isocost.data.prompts import Blend
from isocost.errors import SpecError
from isocost.sampling.interpolate import PATHS, embedded, mixed


@pytest.fixture
def ends():
    return np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


@pytest.mark.parametrize("path", PATHS)
def test_the_ends_are_the_ends_to_the_bit(ends, path):
    first, second = ends
    assert mixed(first, second, 1.0, path).tobytes() == first.tobytes()
    assert mixed(first, second, 0.0, path).tobytes() == second.tobytes()


@pytest.mark.parametrize("path", PATHS)
def test_the_way_back_is_the_same_way(ends, path):
    first, second = ends
    np.testing.assert_allclose(mixed(first, second, 0.3, path), mixed(second, first, 0.7, path), atol=1e-6)


def test_linear_is_the_mean_with_weights(ends):
    np.testing.assert_allclose(mixed(*ends, 0.25), 0.25 * ends[0] + 0.75 * ends[1], atol=1e-6)


def test_spherical_divides_angle_and_length_of_every_token(ends):
    between = mixed(*ends, 0.8, "spherical").astype(np.float64)

    def angle(a, b):
        return np.arccos((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))

    whole = angle(*ends.astype(np.float64))
    np.testing.assert_allclose(angle(between, ends[1].astype(np.float64)), 0.8 * whole, atol=1e-5)
    lengths = np.linalg.norm(ends, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(between, axis=-1), 0.8 * lengths[0] + 0.2 * lengths[1], rtol=1e-5)


def test_tokens_that_both_have_stay_as_they_are(ends):
    first = ends[0]
    np.testing.assert_allclose(mixed(first, first, 0.4, "spherical"), first, rtol=1e-6)
    opposite = mixed(first, -first, 0.75, "spherical")  # no arc is the shortest: the line
    np.testing.assert_allclose(opposite, 0.5 * first, atol=1e-6)


def test_an_unknown_path_is_named(ends):
    with pytest.raises(SpecError, match=r"sphericl.*Did you mean 'spherical'"):
        mixed(*ends, 0.5, "sphericl")


def test_each_text_is_encoded_once():
    class Lengths:
        asked: list

        def encode(self, captions):
            self.asked = list(captions)
            return np.stack([np.full((2, 3), len(caption), np.float32) for caption in captions])

    encoder = Lengths()
    drawn = ["ab", Blend("ab", "abcd", 0.5, "linear"), Blend("ab", "abcd", 0.0, "linear")]
    assert embedded(encoder, drawn)[:, 0, 0].tolist() == [2, 3, 4]  # type: ignore[arg-type]
    assert encoder.asked == ["ab", "abcd"]

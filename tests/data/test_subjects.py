from __future__ import annotations

import numpy as np
import pytest

from isocost.data.scenes import SHAPES
from isocost.data.subjects import SUBJECTS, named_attributes, picture
from isocost.errors import SpecError
from isocost.specs import digest_of


def test_pictures_repeat_and_differ():
    first, again, other = (picture("house", number, 32).image for number in (0, 0, 1))
    assert first.dtype == np.uint8 and first.shape == (32, 32, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_they_are_what_they_were():
    images = [picture(name, number, 32).image.tobytes().hex() for name in SUBJECTS for number in range(3)]
    assert digest_of(images)[:12] == "46daa03644b0"


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_is_all_there_and_its_background_is_not_its_own(name):
    drawn, noted = SUBJECTS[name], picture(name, 2, 64)
    assert drawn.noun in SHAPES and len(drawn.parts) > 1
    assert noted.attributes["background"] not in {part.colour for part in drawn.parts}
    corner = noted.image[0, 0].astype(int)
    assert (np.abs(noted.image.astype(int) - corner).sum(axis=2) > 60).mean() > 0.05


def test_a_prompt_says_place_and_background():
    assert named_attributes("a z circle in the centre on a white background") == {
        "place": "centre",
        "background": "white",
    }
    assert named_attributes("a dog in the jungle") == {}


def test_unknown_ones_are_named():
    with pytest.raises(SpecError, match="Did you mean 'house'"):
        picture("hause", 0, 32)
    with pytest.raises(SpecError, match="16 px"):
        picture("house", 0, 8)

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from isocost.errors import SpecError
from isocost.reporting.strips import Strip, contact_sheet, data_uri


def test_strips_are_checked():
    with pytest.raises(SpecError, match="uint8"):
        Strip(np.zeros((2, 3, 8, 8, 3), np.float32))
    with pytest.raises(SpecError, match="3 columns has 2 labels"):
        Strip(np.zeros((3, 8, 8, 3), np.uint8), columns=("a", "b"))


def test_data_uri_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    head, _, body = data_uri(image).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))), image)


def test_contact_sheet_places_images():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    sheet = contact_sheet(Strip(images.reshape(2, 3, 4, 4, 3)), gap=1)
    assert sheet.shape == (9, 14, 3)
    assert sheet[0, 5, 0] == 1 and sheet[5, 10, 0] == 5 and sheet[4, 0, 0] == 255

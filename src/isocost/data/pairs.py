"""Pairs of a high- and a low-resolution image, made of photographs: pair i is a function of (photographs, seed, i).

So training that takes pair i at the i-th image seen never meets one twice, and needs no state to go on with it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from isocost.data.degradation import DEGRADATIONS, SCALE, degrade, draw
from isocost.data.images import CaptionedImages
from isocost.data.photos import Crops
from isocost.errors import lookup


class Pairs:
    """Crops of `resolution` pixels of photographs, half of them mirrored, and what a degradation leaves of them.

    degradation: a name in `DEGRADATIONS`. Raises `SpecError` for another, `DataError` as `Crops`.
    """

    def __init__(self, photographs: CaptionedImages, resolution: int, degradation: str, seed: int):
        self.degradation = lookup(DEGRADATIONS, degradation, "degradation")
        self.seed = seed
        self._crops = Crops(photographs, resolution, seed, mirror=True)

    def high(self, index: int) -> np.ndarray:
        """uint8 [R, R, 3]."""
        return self._crops.image(index)

    def low(self, index: int, high: np.ndarray) -> np.ndarray:
        """uint8 [R / 4, R / 4, 3], what is left of the crop `high` of pair `index`."""
        return degrade(high, draw(self.degradation, self.seed, index))


def enlarged(low: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [4 h, 4 w, 3] by Pillow's bicubic: what a network is given, and what it has to beat."""
    height, width = low.shape[:2]
    return np.asarray(Image.fromarray(low).resize((SCALE * width, SCALE * height), Image.Resampling.BICUBIC))

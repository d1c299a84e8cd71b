"""What `isocost.upscale` returns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Upscaled(NamedTuple):
    """An image before and after, uint8 [4 h, 4 w, 3] both, and what was done to the file's own pixels at first."""

    bicubic: np.ndarray
    image: np.ndarray
    conversions: tuple[str, ...]

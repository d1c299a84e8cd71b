"""From captioned image files of any size to the square images that networks see."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from isocost.data.shards import CaptionedImages, open_images

__all__ = ["open_images", "square", "square_images"]


def square(image: np.ndarray, resolution: int) -> np.ndarray:
    """The centre square of uint8 RGB [H,W,3], resized to uint8 [resolution,resolution,3].

    Of an odd remainder the extra row or column is cut at the bottom or right. Smaller: Pillow's LANCZOS, which widens
    its kernel by the scale and so does not alias; larger: Pillow's BICUBIC.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = image[top : top + side, left : left + side]
    if side == resolution:
        return np.ascontiguousarray(cut)
    kernel = Image.Resampling.LANCZOS if side > resolution else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(cut).resize((resolution, resolution), kernel))


def square_images(images: CaptionedImages, indices: Iterable[int], resolution: int) -> np.ndarray:
    """`square` of images `indices`: uint8 [N,resolution,resolution,3]."""
    squares = [square(images[index].image, resolution) for index in indices]
    return np.stack(squares) if squares else np.empty((0, resolution, resolution, 3), np.uint8)

"""Images side by side, and images as bytes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np

from isocost.errors import SpecError


@dataclass(frozen=True)
class Strip:
    """Images side by side: `images` uint8 [rows, columns, H, W, 3] (or [columns, H, W, 3] for one row), labelled."""

    images: np.ndarray
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    caption: str = ""
    grid: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        images = np.asarray(self.images)
        grid = images[None] if images.ndim == 4 else images
        if grid.ndim != 5 or grid.shape[-1] != 3 or grid.dtype != np.uint8:
            raise SpecError(f"a strip needs uint8 [rows, columns, H, W, 3], found {images.dtype} {images.shape}.")
        for labels, count, side in ((self.columns, grid.shape[1], "columns"), (self.rows, grid.shape[0], "rows")):
            if labels and len(labels) != count:
                raise SpecError(f"a strip of {count} {side} has {len(labels)} labels for them.")
        object.__setattr__(self, "grid", grid)


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as a `data:image/png` URI."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def contact_sheet(strip: Strip, gap: int = 2) -> np.ndarray:
    """All images of a strip on one white uint8 sheet [H', W', 3], `gap` pixels apart, without labels."""
    rows, columns, height, width, _ = strip.grid.shape
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = strip.grid[row, column]
    return sheet

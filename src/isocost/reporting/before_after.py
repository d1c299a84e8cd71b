"""A page that shows an image before and after upscaling, one over the other, with a slider between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from isocost.reporting.strips import data_uri

SHOWN = 1024  # pixels a side: of a larger image the middle is shown, so that the page stays small


def before_after(before: np.ndarray, after: np.ndarray, path: Path, title: str, facts: Mapping[str, str]) -> Path:
    """Write the page: uint8 images of one size [H, W, 3], and what there is to say of them. No request leaves it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    height, width = (min(side, SHOWN) for side in after.shape[:2])
    whole = (height, width) == after.shape[:2]
    page = environment.get_template("before_after.html.j2").render(
        title=title,
        before=data_uri(_middle(before)),
        after=data_uri(_middle(after)),
        width=width,
        height=height,
        facts=dict(facts) | ({} if whole else {"shown": f"the middle {width} x {height} pixels"}),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _middle(image: np.ndarray) -> np.ndarray:
    top, left = ((side - min(side, SHOWN)) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + SHOWN, left : left + SHOWN])

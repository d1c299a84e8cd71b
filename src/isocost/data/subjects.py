"""Procedural subjects for DreamBooth: objects of several parts that no scene shows, and a few pictures of each.

Picture i of a subject is a function of its name, i and the resolution: the object, large and upright, at a place and on
a background of its own. The parts are shapes of `isocost.data.scenes`, stacked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isocost.data.scenes import COLOURS, MIN_RESOLUTION, PALETTE, PLACES, SHAPES
from isocost.errors import SpecError, lookup

RADIUS = (0.21, 0.25)  # in image sides
CENTRES = {"left": (0.28, 0.5), "right": (0.72, 0.5), "top": (0.5, 0.28), "bottom": (0.5, 0.72), "centre": (0.5, 0.5)}


@dataclass(frozen=True)
class Part:
    """A shape in one colour, its centre and radius in the subject's radii, y downwards."""

    shape: str
    colour: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """noun: what captions call things of its kind, its class. parts: from the back to the front."""

    noun: str
    parts: tuple[Part, ...]


SUBJECTS: dict[str, Drawn] = {
    "target": Drawn(
        "circle", (Part("circle", "red"), Part("circle", "white", radius=0.66), Part("circle", "blue", radius=0.36))
    ),
    "house": Drawn(
        "square",
        (
            Part("square", "yellow", y=0.3, radius=0.9),
            Part("triangle", "red", y=-0.55, radius=0.95),
            Part("square", "blue", y=0.55, radius=0.32),
        ),
    ),
    "tree": Drawn(
        "triangle",
        (
            Part("square", "orange", y=0.75, radius=0.36),
            Part("triangle", "green", y=0.15, radius=0.95),
            Part("triangle", "green", y=-0.5, radius=0.75),
        ),
    ),
    "face": Drawn(
        "circle",
        (
            Part("circle", "yellow"),
            Part("circle", "black", x=-0.38, y=-0.25, radius=0.24),
            Part("circle", "black", x=0.38, y=-0.25, radius=0.24),
            Part("square", "red", y=0.45, radius=0.3),
        ),
    ),
    "gem": Drawn("diamond", (Part("diamond", "purple"), Part("diamond", "white", radius=0.55))),
    "badge": Drawn("star", (Part("circle", "blue"), Part("star", "yellow", radius=0.9))),
}


@dataclass(frozen=True)
class Picture:
    """image: uint8 [H, W, 3]. attributes: its place and background, by the names of scenes."""

    image: np.ndarray
    attributes: dict[str, str | int]

    @property
    def caption(self) -> str:
        """As scenes have it, `{}` being the subject."""
        place, ground = str(self.attributes["place"]), str(self.attributes["background"])
        where = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
        article = "an" if ground[0] in "aeiou" else "a"
        return f"a {{}} {where.get(place, 'in the centre')} on {article} {ground} background"


def picture(name: str, number: int, resolution: int) -> Picture:
    """Picture `number` of a subject. Raises `SpecError` for an unknown one, or below 16 px."""
    parts = lookup(SUBJECTS, name, "subject").parts
    if resolution < MIN_RESOLUTION:
        raise SpecError(f"subjects need a resolution of {MIN_RESOLUTION} px or more, found {resolution}.")
    key = hashlib.sha256(f"isocost subjects v1 {name} {number}".encode()).digest()[:16]
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    grounds = [colour for colour in COLOURS if colour not in {part.colour for part in parts}]
    place, ground = PLACES[int(random.integers(len(PLACES)))], grounds[int(random.integers(len(grounds)))]
    radius = (RADIUS[0] + (RADIUS[1] - RADIUS[0]) * random.random()) * resolution
    x, y = (at * resolution + (random.random() - 0.5) * 0.04 * resolution for at in CENTRES[place])
    canvas = np.full((resolution, resolution, 3), PALETTE[ground], dtype=np.float32)
    for part in parts:
        _paint(canvas, part, x + part.x * radius, y + part.y * radius, part.radius * radius)
    image = np.floor(np.clip(canvas, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return Picture(image, {"place": place, "background": ground})


def _paint(canvas: np.ndarray, part: Part, x: float, y: float, radius: float) -> None:
    """Lay a part over what is there, with an edge one pixel soft. Its centre and radius are in pixels."""
    at = (np.arange(len(canvas)) + 0.5).astype(np.float32)
    distance: Callable[..., np.ndarray] = SHAPES[part.shape]
    across, down = np.broadcast_arrays((at[None, :] - np.float32(x)), (at[:, None] - np.float32(y)))
    edge = distance(across / np.float32(radius), down / np.float32(radius)) * np.float32(radius)
    coverage = np.clip(np.float32(0.5) - edge, 0, 1)[..., None]
    canvas += coverage * (np.array(PALETTE[part.colour], np.float32) - canvas)


_PLACE_WORDS = {
    "left": "left",
    "right": "right",
    "top": "top",
    "bottom": "bottom",
    "centre": "centre",
    "middle": "centre",
}


def named_attributes(prompt: str) -> dict[str, str | int]:
    """The place and background that a caption of procedural scenes names, where it does."""
    found: dict[str, str | int] = {}
    if (ground := re.search(rf"\b({'|'.join(COLOURS)}) background", prompt)) is not None:
        found["background"] = ground[1]
    words = re.search(rf"\b(?:in|on|at|near) the ({'|'.join(_PLACE_WORDS)})\b", prompt)
    if words is not None:
        found["place"] = _PLACE_WORDS[words[1]]
    return found

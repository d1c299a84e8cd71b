"""Procedural captioned scenes: endless, deterministic images whose every attribute is known.

Scene i is a function of (seed, i, options). All its choices come from one row of uniform numbers, drawn by a Philox
generator keyed by sha256 of (version, seed, i); from that row follow the layout, the attributes, the caption and the
pixels. Shapes are signed distance fields with one pixel of linear edge coverage. Only correctly rounded operations
(+ - * / sqrt floor) touch pixels, so that an image has the same bytes alone, in a batch, and on any machine.

The attributes are facts about the image and owe nothing to the caption's wording: with two groups, the left or upper
one is always the first.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from isocost.data.shards import write_shards
from isocost.errors import SpecError
from isocost.specs import SceneOptions

PALETTE = {
    "red": (215, 40, 45),
    "orange": (240, 135, 30),
    "yellow": (245, 220, 60),
    "green": (40, 160, 70),
    "blue": (45, 90, 215),
    "purple": (145, 60, 175),
    "white": (245, 245, 245),
    "black": (18, 18, 18),
}
COLOURS = tuple(PALETTE)
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
COUNTS = (1, 2, 3, 4)
PLACES = ("left", "right", "top", "bottom", "centre")

# Radius ranges in image sides. Three or four objects have one size only, so `size` is no attribute of theirs.
RADII = {(1, 0): (0.125, 0.150), (1, 1): (0.190, 0.225), (2, 0): (0.125, 0.150), (2, 1): (0.190, 0.225)}
RADII |= {(3, size): (0.130, 0.152) for size in (0, 1)} | {(4, size): (0.103, 0.116) for size in (0, 1)}
LARGEST = 0.225 * 1.06
MIN_RESOLUTION = 16

# The uniform numbers of a scene, by name. The order is part of version 1: names are only ever appended.
_WHOLE = ("groups", "relation", "place", "background", "order", "wording", "noun", "ramp", "ramp_x", "ramp_y")
_TINT = tuple(f"tint_{channel}" for channel in "rgb")
_GROUP = ("colour", "shape", "texture", "count", "size", "radius", "spread", "turn", "x", "y", "slant", *_TINT)
_COLUMNS = (
    *_WHOLE,
    *(f"shade_{channel}" for channel in "rgb"),
    *(f"{name}{group}" for group in (1, 2) for name in _GROUP),
    *(f"{axis}{group}{slot}" for group in (1, 2) for slot in range(4) for axis in "xy"),
)
_COLUMN = {name: place for place, name in enumerate(_COLUMNS)}


@dataclass(frozen=True)
class Scene:
    """image: uint8 [H, W, 3] RGB. attributes: name -> value; of `ATTRIBUTES`, those that the scene has."""

    image: np.ndarray
    caption: str
    attributes: dict[str, str | int]


# --- shapes: signed distance (negative inside) at points x, y in radii, y downwards; extent at most 1.06 ---


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - np.float32(0.95)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.75)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y - np.float32(0.15)
    return np.maximum(y, np.float32(0.8660254) * np.abs(x) - np.float32(0.5) * y) - np.float32(0.56)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) + np.float32(0.62) * np.abs(y) - np.float32(0.65)) * np.float32(0.84989)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: fold the plane into the wedge of half a point, then the distance to that one edge."""
    x, y = np.abs(x), -y
    for nx, ny in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        over = np.maximum(np.float32(nx) * x + np.float32(ny) * y, np.float32(0))
        x, y = x - np.float32(2 * nx) * over, y - np.float32(2 * ny) * over
    return np.float32(0.864) * np.abs(x) + np.float32(0.5036) * (y - np.float32(1.05))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.70)) - np.float32(0.27)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(long - np.float32(0.95), short - np.float32(0.30))


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bite = x - np.float32(0.50)
    return np.maximum(np.sqrt(x * x + y * y) - np.float32(1.0), np.float32(0.72) - np.sqrt(bite * bite + y * y))


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
}
SHAPE_NAMES = tuple(SHAPES)
PLURALS = {name: "crosses" if name == "cross" else f"{name}s" for name in SHAPE_NAMES}

ATTRIBUTES: dict[str, tuple[str | int, ...]] = {
    "groups": (1, 2),
    "background": COLOURS,
    "place": PLACES,
    "colour": COLOURS,
    "shape": SHAPE_NAMES,
    "count": COUNTS,
    "size": SIZES,
    "texture": TEXTURES,
    "colour2": COLOURS,
    "shape2": SHAPE_NAMES,
    "count2": COUNTS,
    "size2": SIZES,
    "texture2": TEXTURES,
}


# --- from numbers to choices ---


@dataclass(frozen=True)
class _Layout:
    """What was chosen for N scenes. Integer codes index the tables above; per-group arrays are [2, N]."""

    groups: np.ndarray
    place: np.ndarray
    background: np.ndarray
    colour: np.ndarray
    shape: np.ndarray
    count: np.ndarray
    size: np.ndarray
    texture: np.ndarray


def _uniforms(seed: int, indices: Sequence[int], options: SceneOptions) -> np.ndarray:
    """float64 [N, columns] in [0, 1)."""
    if options.version != 1:
        raise SpecError(f"scenes version {options.version} is not known: this release draws version 1.")
    rows = np.empty((len(indices), len(_COLUMNS)))
    for row, index in zip(rows, indices, strict=True):
        key = hashlib.sha256(f"isocost scenes v{options.version} {seed} {int(index)}".encode()).digest()[:16]
        philox = np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64))
        np.random.Generator(philox).random(out=row)
    return rows


def _column(u: np.ndarray, name: str) -> np.ndarray:
    return u[:, _COLUMN[name]]


def _pair(u: np.ndarray, name: str) -> np.ndarray:
    """The number `name` of both groups, [2, N]."""
    return u[:, [_COLUMN[f"{name}1"], _COLUMN[f"{name}2"]]].T


def _pick(u: np.ndarray, options: int) -> np.ndarray:
    return np.floor(u * options).astype(np.int64)


def _layout(u: np.ndarray, options: SceneOptions) -> _Layout:
    two = (_column(u, "groups") < 0.5) & (options.groups == 2)
    beside = np.where(_column(u, "relation") < 0.5, PLACES.index("left"), PLACES.index("top"))
    background = _pick(_column(u, "background"), 8)
    first = (background + 1 + _pick(_column(u, "colour1"), 7)) % 8
    second = _pick(_column(u, "colour2"), 6)  # one of the six that neither the background nor the first group has
    second += second >= np.minimum(background, first)
    second += second >= np.maximum(background, first)
    return _Layout(
        groups=1 + two,
        place=np.where(two, beside, _pick(_column(u, "place"), len(PLACES))),
        background=background,
        colour=np.stack([first, second]),
        shape=_pick(_pair(u, "shape"), len(SHAPES)),
        count=1 + _pick(_pair(u, "count"), options.count),
        size=_pick(_pair(u, "size"), len(SIZES)),
        texture=_pick(_pair(u, "texture"), len(TEXTURES) if options.textures else 1),
    )


def _attributes(layout: _Layout, i: int) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "groups": int(layout.groups[i]),
        "background": COLOURS[layout.background[i]],
        "place": PLACES[layout.place[i]],
    }
    for group in range(layout.groups[i]):
        suffix = "2" if group else ""
        count = int(layout.count[group, i])
        found[f"colour{suffix}"] = COLOURS[layout.colour[group, i]]
        found[f"shape{suffix}"] = SHAPE_NAMES[layout.shape[group, i]]
        found[f"count{suffix}"] = count
        if count <= 2:
            found[f"size{suffix}"] = SIZES[layout.size[group, i]]
        found[f"texture{suffix}"] = TEXTURES[layout.texture[group, i]]
    return found


# --- captions ---

_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_WHERE = {
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "centre": ("in the centre", "in the middle"),
}
_RELATION = {"left": ("to the left of", "to the right of"), "top": ("above", "below")}


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _noun_phrase(attributes: dict[str, str | int], suffix: str, number: float) -> str:
    """Such as "two small striped red stars"; `number` in [0, 1) chooses between "a" and "one"."""
    count = int(attributes[f"count{suffix}"])
    shape = str(attributes[f"shape{suffix}"])
    texture = attributes[f"texture{suffix}"]
    words = [attributes.get(f"size{suffix}"), None if texture == "plain" else texture, attributes[f"colour{suffix}"]]
    phrase = " ".join([str(word) for word in words if word] + [shape if count == 1 else PLURALS[shape]])
    return _article(phrase) if count == 1 and number < 0.75 else f"{_NUMBERS[count]} {phrase}"


def _caption(attributes: dict[str, str | int], order: float, wording: float, noun: float) -> str:
    """One of the grammar's sentences; all of them name every attribute (a texture not named is plain)."""
    place = str(attributes["place"])
    first = _noun_phrase(attributes, "", noun)
    if attributes["groups"] == 1:
        things = f"{first} {_WHERE[place][int(order < 0.4)]}"
    else:
        second = _noun_phrase(attributes, "2", (noun * 8) % 1)
        ahead, behind = _RELATION[place]
        things = f"{first} {ahead} {second}" if order < 0.5 else f"{second} {behind} {first}"
    ground = _article(f"{attributes['background']} background")
    if wording < 0.6:
        return f"{things} on {ground}"
    if wording < 0.8:
        return f"{ground} with {things}"
    return f"a picture of {things} on {ground}"


def describe(seed: int, index: int, options: SceneOptions) -> tuple[str, dict[str, str | int]]:
    """Caption and attributes of scene `index`, without drawing it."""
    return describe_all(seed, [index], options)[0]


def describe_all(seed: int, indices: Sequence[int], options: SceneOptions) -> list[tuple[str, dict[str, str | int]]]:
    """`describe` of many scenes at once."""
    u = _uniforms(seed, indices, options)
    return _describe(u, _layout(u, options))


def _describe(u: np.ndarray, layout: _Layout) -> list[tuple[str, dict[str, str | int]]]:
    numbers = zip(*(_column(u, name).tolist() for name in ("order", "wording", "noun")), strict=True)
    described = []
    for i, (order, wording, noun) in enumerate(numbers):
        attributes = _attributes(layout, i)
        described.append((_caption(attributes, order, wording, noun), attributes))
    return described


def chance(options: SceneOptions) -> dict[str, float]:
    """Accuracy of always answering the commonest value, by attribute, where a scene has it (from 8,192 captions)."""
    return dict(_chance(options.groups, options.version))


@lru_cache(maxsize=8)
def _chance(groups: int, version: int) -> dict[str, float]:
    options = SceneOptions(groups=groups, version=version)
    found = [attributes for _, attributes in describe_all(0, range(8192), options)]
    levels = {}
    for name, values in ATTRIBUTES.items():
        have = [attributes[name] for attributes in found if name in attributes]
        if have:
            levels[name] = max(have.count(value) for value in values) / len(have)
    return levels


# --- pixels ---


@dataclass(frozen=True)
class _Objects:
    """M single objects of N scenes, sorted by group, then slot; centre and radius in image sides."""

    scene: np.ndarray
    group: np.ndarray
    slot: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


# Places in a centred cluster, in units of the objects' spacing: [count][k] -> (x, y).
_CLUSTER = np.zeros((5, 4, 2))
_CLUSTER[2, :2] = [(-1, 0), (1, 0)]
_CLUSTER[3, :3] = [(-1, 0.75), (1, 0.75), (0, -1.0)]
_CLUSTER[4, :4] = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
_RADIUS = np.array([[RADII[max(count, 1), size] for size in (0, 1)] for count in range(5)])


def _objects(u: np.ndarray, layout: _Layout) -> _Objects:
    """Where every object lies. Objects of one scene do not overlap and lie inside the image."""
    group, slot, scene = (axis.ravel() for axis in np.indices((2, 4, len(u))))
    there = (group < layout.groups[scene]) & (slot < layout.count[group, scene])
    group, slot, scene = group[there], slot[there], scene[there]
    count = layout.count[group, scene]
    low, high = _RADIUS[count, layout.size[group, scene]].T
    radius = low + (high - low) * _pair(u, "radius")[group, scene]
    spread = _pair(u, "spread")[group, scene]
    place = layout.place[scene]
    centred = place == PLACES.index("centre")
    upright = (place == PLACES.index("left")) | (place == PLACES.index("right"))  # a column rather than a row
    far = np.where(group == 1, True, (place == PLACES.index("right")) | (place == PLACES.index("bottom")))

    # In a half of the image: a line of objects along it, `along` the line and `across` it.
    tight = np.minimum(1.0, count * 2.15 * radius)
    length = np.where(count == 1, 0.0, tight + (1 - tight) * spread)
    own = u[scene, _COLUMN["x10"] + 8 * group + 2 * slot], u[scene, _COLUMN["x10"] + 8 * group + 2 * slot + 1]
    shift = _pair(u, "x")[group, scene], _pair(u, "y")[group, scene]
    step = np.where(count == 1, 1.0, length / count)
    along = 0.5 + ((slot + 0.5) / count - 0.5) * length
    along = along + (2 * own[0] - 1) * np.minimum(np.maximum(0.5 * step - radius, 0.0), 0.04)
    along = along + (2 * shift[0] - 1) * np.minimum(np.where(count == 1, 0.5 - radius, (1 - length) / 2), 0.13)
    wander = np.minimum(0.25 - radius, 0.06)
    across = np.where(far, 0.75, 0.25) + (shift[1] + own[1] - 1) * wander

    # In the centre: a cluster.
    gap = radius * (1.08 + 0.12 * spread)
    at = _CLUSTER[count, slot] * gap[:, None]
    room = np.minimum(0.5 - radius - np.abs(_CLUSTER[count]).max(1).T * gap, 0.06)
    centre_x, centre_y = (0.5 + at[:, k] + (2 * shift[k] - 1) * room[k] for k in (0, 1))

    x = np.where(centred, centre_x, np.where(upright, across, along))
    y = np.where(centred, centre_y, np.where(upright, along, across))
    return _Objects(scene, group, slot, x, y, radius)


def _colours(codes: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """float32 [M, 3] in [0, 1]: palette colours moved by up to 12 levels a channel."""
    base = np.array([PALETTE[name] for name in COLOURS], dtype=np.float64)
    return (np.clip(base[codes] + (2 * tint - 1) * 12, 0, 255) / 255).astype(np.float32)


def _ground(u: np.ndarray, layout: _Layout, resolution: int) -> np.ndarray:
    """Backgrounds, float32 [N, H, W, 3]: half of them plain, half with a ramp towards grey."""
    tint = np.stack([_column(u, f"shade_{channel}") for channel in "rgb"], 1)
    colour = _colours(layout.background, tint)
    amount = np.maximum(_column(u, "ramp") - 0.5, 0.0) * 0.5
    slope_x, slope_y = (amount * (2 * _column(u, f"ramp_{axis}") - 1) for axis in "xy")
    at = (np.arange(resolution) + 0.5) / resolution
    ramp = amount[:, None, None] + (slope_x[:, None, None] * (at - 0.5) + slope_y[:, None, None] * (at - 0.5)[:, None])
    ramp = np.clip(ramp, 0.0, 1.0).astype(np.float32)[..., None]
    colour = colour[:, None, None, :]
    return colour + ramp * (np.float32(0.5) - colour)


def _accent(colour: np.ndarray) -> np.ndarray:
    """The second colour of a texture: darker for light colours, lighter for dark ones."""
    light = colour[:, 0] * np.float32(0.3) + colour[:, 1] * np.float32(0.6) + colour[:, 2] * np.float32(0.1)
    towards = np.where(light > 0.45, np.float32(0), np.float32(1))[:, None]
    return colour + np.float32(0.55) * (towards - colour)


def _off_centre(wave: np.ndarray) -> np.ndarray:
    """Distance, in periods, to the nearest whole number."""
    return np.abs(wave - np.floor(wave + np.float32(0.5)))


def _texture(kind: np.ndarray, x: np.ndarray, y: np.ndarray, period: np.ndarray) -> np.ndarray:
    """Share of the accent colour, float32 [K], at points x, y; they and the textures' periods are in pixels."""
    share = np.zeros_like(x)
    striped, dotted = (np.flatnonzero(kind == TEXTURES.index(name)) for name in ("striped", "dotted"))
    across = _off_centre(x[striped] / period[striped])
    share[striped] = np.clip((np.float32(0.25) - across) * period[striped] + np.float32(0.5), 0, 1)
    u, v = (_off_centre(axis[dotted] / period[dotted]) for axis in (x, y))
    share[dotted] = np.clip((np.float32(0.30) - np.sqrt(u * u + v * v)) * period[dotted] + np.float32(0.5), 0, 1)
    return share


def _turn(half_tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 cosine and sine of the angle whose half has this tangent, without a library's own functions."""
    square = half_tangent * half_tangent
    return ((1 - square) / (1 + square)).astype(np.float32), (2 * half_tangent / (1 + square)).astype(np.float32)


def draw(seed: int, indices: Sequence[int], resolution: int, options: SceneOptions) -> np.ndarray:
    """Images of scenes `indices`: uint8 [N, resolution, resolution, 3], RGB."""
    u = _uniforms(seed, indices, options)
    return _draw(u, _layout(u, options), resolution)


def _draw(u: np.ndarray, layout: _Layout, resolution: int) -> np.ndarray:
    """uint8 [N, resolution, resolution, 3]."""
    if resolution < MIN_RESOLUTION:
        raise SpecError(f"scenes need a resolution of {MIN_RESOLUTION} px or more, found {resolution}.")
    canvas = _ground(u, layout, resolution)
    objects = _objects(u, layout)
    scene, group = objects.scene, objects.group

    left, top = (_corner(at * resolution, _patch(resolution), resolution) for at in (objects.x, objects.y))
    x = (left + 0.5 - (objects.x * resolution)[:, None]).astype(np.float32)
    y = (top + 0.5 - (objects.y * resolution)[:, None]).astype(np.float32)
    radius = (objects.radius * resolution).astype(np.float32)
    turn = (0.2 * _pair(u, "turn") - 0.1)[group, scene]  # up to 11 degrees either way
    edge = _edges(layout.shape[group, scene], x, y, radius, turn)

    # Only covered pixels get a colour: lists of K of them, in the order of the objects.
    which, row, column = np.nonzero(edge < np.float32(0.5))
    coverage = np.minimum(np.float32(0.5) - edge[which, row, column], np.float32(1))[:, None]
    x, y = x[which, column], y[which, row]
    cosine, sine = (part[which] for part in _turn((2 * _pair(u, "slant") - 1)[group, scene]))
    period = np.maximum(np.float32(0.75) * radius, np.float32(0.115 * resolution))[which]
    share = _texture(layout.texture[group, scene][which], x * cosine + y * sine, y * cosine - x * sine, period)[:, None]
    plain = _colours(layout.colour[group, scene], np.stack([_pair(u, name) for name in _TINT], -1)[group, scene])
    paint = plain[which] + share * (_accent(plain) - plain)[which]

    # One object of each scene at a time, for the soft edges of neighbours may share a pixel.
    pixels = canvas.reshape(-1, 3)
    place = (scene[which] * resolution + top[which, row]) * resolution + left[which, column]
    turns = np.searchsorted((4 * group + objects.slot)[which], np.arange(9))
    for begin, end in pairwise(turns):
        under = pixels[place[begin:end]]
        pixels[place[begin:end]] = under + coverage[begin:end] * (paint[begin:end] - under)
    return np.floor(np.clip(canvas, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _patch(resolution: int) -> int:
    """Pixels a side of a square that holds the largest object wherever it lies."""
    return min(resolution, int(2 * LARGEST * resolution) + 3)


def _corner(centre: np.ndarray, patch: int, resolution: int) -> np.ndarray:
    """Pixel numbers [M, patch], inside the image, of the patches around these centres (in pixels)."""
    first = np.floor(np.clip(centre - patch / 2 + 0.5, 0, resolution - patch)).astype(np.int64)
    return first[:, None] + np.arange(patch)


def _edges(shape: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Signed distance in pixels, float32 [M, P, P], from the columns x and rows y [M, P] to each object's edge."""
    edge = np.empty((*x.shape, y.shape[1]), dtype=np.float32)
    cosine, sine = _turn(turn)
    for code, distance in enumerate(SHAPES.values()):
        these = np.flatnonzero(shape == code)
        size, c, s = (values[these, None, None] for values in (radius, cosine, sine))
        across, down = x[these, None, :] / size, y[these, :, None] / size
        edge[these] = distance(across * c + down * s, down * c - across * s) * size
    return edge


def scenes(seed: int, indices: Sequence[int], resolution: int, options: SceneOptions) -> list[Scene]:
    """Scenes `indices`; equal, byte for byte, to drawing each by itself. Raises `SpecError` below 16 px."""
    u = _uniforms(seed, indices, options)
    layout = _layout(u, options)
    images = _draw(u, layout, resolution)
    return [Scene(image, *described) for image, described in zip(images, _describe(u, layout), strict=True)]


def scene(seed: int, index: int, resolution: int, options: SceneOptions) -> Scene:
    """Scene `index`: a function of (seed, index, resolution, options) only."""
    return scenes(seed, [index], resolution, options)[0]


def write_scenes(
    folder: str | Path, images: int, resolution: int, seed: int = 0, options: SceneOptions | None = None
) -> list[Path]:
    """Scenes 0 to `images` - 1 as tars of captioned PNGs, `scenes-SEED-*.tar`, with what they show as .json.

    For studies of kind "images", and as photographs for super-resolution. Raises `SpecError` below 16 px.
    """
    options = options or SceneOptions()
    drawn = (
        one
        for start in range(0, images, 64)
        for one in scenes(seed, range(start, min(start + 64, images)), resolution, options)
    )
    samples = (
        {
            "__key__": f"scene-{seed}-{number:06d}",
            "png": _png(one.image),
            "txt": one.caption,
            "json": json.dumps(one.attributes),
        }
        for number, one in enumerate(drawn)
    )
    return write_shards(samples, folder, f"scenes-{seed}")


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()

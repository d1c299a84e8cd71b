"""Named protocols: which images a score is against, chosen once and for all, under a digest that scores carry.

Choices are by sha256 of names, not by a random generator: any program in any language can make them again.
`NAME:FOLDER` opens a protocol on data that lies in a local folder; nothing is downloaded.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from isocost.data.images import CaptionedImages, Decoded, decode, open_images, square
from isocost.errors import DataError, SpecError, did_you_mean
from isocost.scoring.sets import ImageSet, shared
from isocost.specs import digest_of


def rank(name: str, *parts: object) -> int:
    """A number that looks random and is a function of a protocol's name and what it is the number of."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, (name, *parts))).encode()).digest()[:8], "big")


# --- coco2014-30k ---


@dataclass(frozen=True)
class CocoCaption:
    """A chosen caption and its image."""

    image_id: int
    caption_id: int
    file_name: str
    caption: str


@dataclass(frozen=True, eq=False)
class CocoImages(ImageSet):
    """The images of COCO 2014 that a protocol chose, each with its caption: the centre square at `resolution`."""

    name: str
    folder: Path
    chosen: tuple[CocoCaption, ...]
    resolution: int

    @functools.cached_property
    def _by_key(self) -> list[CocoCaption]:
        return sorted(self.chosen, key=lambda chosen: chosen.file_name)

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(Path(chosen.file_name).stem for chosen in self._by_key)

    @functools.cached_property
    def protocol(self) -> str:
        return _named(self.name, self.resolution, self.manifest)

    @property
    def prompts(self) -> list[str]:
        """The captions in the protocol's own order, of which any beginning is a random choice too."""
        return [chosen.caption for chosen in self.chosen]

    @property
    def manifest(self) -> list[dict[str, Any]]:
        return [vars(chosen) for chosen in self.chosen]

    def where(self, index: int) -> str:
        return str(self.folder / self._by_key[index].file_name)

    def read(self, index: int) -> Decoded:
        whole = _decode(self.folder / self._by_key[index].file_name)
        return Decoded(square(whole.pixels, self.resolution), whole.conversions, whole.format)

    def caption(self, index: int) -> str:
        return self._by_key[index].caption


def coco2014_30k(folder: Path, count: int = 30_000, resolution: int = 256) -> CocoImages:
    """COCO 2014 validation: 30,000 of its images, and one caption of each.

    `folder` holds the official `annotations/captions_val2014.json` and `val2014/`. Images are ranked by sha256, and so
    are the captions of an image. References are the chosen images: centre square, `resolution` pixels. Raises
    `DataError` naming a file that is missing or is not what it should be.
    """
    annotations = _first(folder / "annotations" / "captions_val2014.json", folder / "captions_val2014.json")
    try:
        found = json.loads(annotations.read_bytes())
        files = {int(image["id"]): str(image["file_name"]) for image in found["images"]}
        captions: dict[int, list[tuple[int, int, str]]] = {}
        for entry in found["annotations"]:
            caption_id, text = int(entry["id"]), " ".join(str(entry["caption"]).split())
            ranked = (rank("coco2014-30k", "caption", caption_id), caption_id, text)
            captions.setdefault(int(entry["image_id"]), []).append(ranked)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{annotations}: not COCO's captions ({type(error).__name__}: {error}).") from None
    usable = sorted(captions.keys() & files.keys(), key=lambda image_id: (rank("coco2014-30k", image_id), image_id))
    if len(usable) < count:
        raise DataError(f"{annotations}: {len(usable):,} images with captions, and coco2014-30k takes {count:,}.")
    chosen = []
    for image_id in usable[:count]:
        _, caption_id, text = min(captions[image_id])
        chosen.append(CocoCaption(image_id, caption_id, files[image_id], text))
    return CocoImages("coco2014-30k", _first(folder / "val2014", folder), tuple(chosen), resolution)


# --- div2k-sr-3k ---


@dataclass(frozen=True)
class Crop:
    """A square of an image, its corner and side in pixels, and the seed of its degradation."""

    key: str
    image: str
    x: int
    y: int
    size: int
    degradation_seed: int


@dataclass(frozen=True, eq=False)
class Crops(ImageSet):
    """Squares cut from images: the high-resolution targets of a super-resolution protocol.

    photographs: what the images are by key; None: files of `folder`.
    """

    name: str
    folder: Path
    crops: tuple[Crop, ...]
    photographs: CaptionedImages | None = None

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(crop.key for crop in self.crops)

    @functools.cached_property
    def protocol(self) -> str:
        return _named(self.name, self.manifest, *([self.photographs.digest] if self.photographs else []))

    @property
    def manifest(self) -> list[dict[str, Any]]:
        return [vars(crop) for crop in self.crops]

    @property
    def in_order(self) -> tuple[int, ...]:
        """Places of the crops in the protocol's own order, of which any beginning is a random choice too."""
        ranks = {place: rank(self.name, "order", crop.key) for place, crop in enumerate(self.crops)}
        return tuple(sorted(ranks, key=ranks.__getitem__))

    @functools.cached_property
    def _whole(self) -> Callable[[str], Decoded]:
        if self.photographs is None:
            return shared(lambda image: _decode(self.folder / image))
        photographs, places = self.photographs, {key: place for place, key in enumerate(self.photographs.keys)}
        return shared(lambda image: photographs.decoded(places[image]))

    def where(self, index: int) -> str:
        crop = self.crops[index]
        return f"{self.folder / crop.image} at {crop.x}, {crop.y}"

    def read(self, index: int) -> Decoded:
        crop = self.crops[index]
        whole = self._whole(crop.image)
        pixels = whole.pixels[crop.y : crop.y + crop.size, crop.x : crop.x + crop.size]
        return Decoded(pixels, whole.conversions, whole.format)


def div2k_sr_3k(folder: Path, images: int = 100, crops: int = 3_000, size: int = 512) -> Crops:
    """DIV2K validation: 3,000 squares of 512 pixels, as many of every image, and a seed for the degradation of each.

    `folder` holds `DIV2K_valid_HR/0801.png` to `0900.png`, or is that folder. Corners are sha256 of the crop's name,
    modulo the room there is. Raises `DataError` for another number of images, or one smaller than a crop.
    """
    folder = _first(folder / "DIV2K_valid_HR", folder)
    files = sorted(folder.glob("*.png"))
    if len(files) != images:
        raise DataError(f"{folder}: {len(files)} .png files, and div2k-sr-3k takes the {images} of DIV2K_valid_HR.")
    found = [
        crop
        for path in files
        for crop in _crops_of("div2k-sr-3k", path.name, path.stem, str(path), _image_size(path), crops // images, size)
    ]
    return Crops("div2k-sr-3k", folder, tuple(sorted(found, key=lambda crop: crop.key)))


def sr(size: int, place: Path, each: int = 16) -> Crops:
    """Squares of `size` pixels of any photographs, `each` of every one, chosen as those of div2k-sr-3k.

    `place`: a folder of photographs, a .tar or a folder of tars. Raises `DataError` for a photograph that is smaller
    than a crop.
    """
    name, photographs = f"sr-{size}", open_images([place], captions_required=False)
    found = [
        crop
        for index, key in enumerate(photographs.keys)
        for crop in _crops_of(name, key, key, photographs.where(index), photographs.size(index), each, size)
    ]
    return Crops(name, place, tuple(sorted(found, key=lambda crop: crop.key)), photographs)


def _crops_of(
    name: str, image: str, stem: str, where: str, room: tuple[int, int], each: int, size: int
) -> Iterator[Crop]:
    """Of an image of (width, height) `room`."""
    width, height = room
    if min(room) < size:
        raise DataError(f"{where}: {width} x {height} pixels, smaller than a crop of {size}.")
    for number in range(each):
        key = f"{stem}-{number:0{len(str(each - 1))}d}"
        x, y, seed = (rank(name, key, what) for what in ("x", "y", "degradation"))
        yield Crop(key, image, x % (width - size + 1), y % (height - size + 1), size, seed % 2**32)


def _named(name: str, *identity: Any) -> str:
    """A protocol's name with a digest of all that it chose."""
    return f"{name}@{digest_of(identity)[:12]}"


def _first(*paths: Path) -> Path:
    """The first that is there; else a `DataError` naming the first."""
    for path in paths:
        if path.exists():
            return path
    raise DataError(f"{paths[0]}: not there. docs/scores.md says what the folder of a protocol holds.")


def _decode(path: Path) -> Decoded:
    if not path.is_file():
        raise DataError(f"{path}: not there, and the protocol names it.")
    return decode(path.read_bytes(), str(path))


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: not an image that can be read: {error}") from None


# --- by name ---

PROTOCOLS: dict[str, Callable[[Path], CocoImages | Crops]] = {
    "coco2014-30k": coco2014_30k,
    "div2k-sr-3k": div2k_sr_3k,
    **{f"sr-{size}": functools.partial(sr, size) for size in (32, 64, 128, 256)},
}


def is_protocol(text: str) -> bool:
    """Whether this is meant as `NAME:FOLDER`: a protocol's name before the colon."""
    return text.partition(":")[0] in PROTOCOLS


def open_protocol(text: str) -> CocoImages | Crops:
    """The images of `NAME:FOLDER`. Raises `SpecError` for an unknown name or no folder, `DataError` for its data."""
    name, colon, folder = text.partition(":")
    if name not in PROTOCOLS:
        raise SpecError(f"unknown protocol '{name}'.{did_you_mean(name, PROTOCOLS)}")
    if not colon or not folder:
        raise SpecError(f"'{text}': say where its data lies, {name}:FOLDER.")
    return PROTOCOLS[name](Path(folder))


@functools.lru_cache(maxsize=2)
def protocol_crops(text: str) -> Crops:
    """The crops of `NAME:FOLDER`, opened once a process. Raises `SpecError` for a protocol that has none."""
    crops = open_protocol(text)
    if not isinstance(crops, Crops):
        raise SpecError(f"'{text}': this protocol has no crops to upscale; sr-64 and div2k-sr-3k have.")
    return crops


@functools.lru_cache(maxsize=2)
def protocol_prompts(text: str) -> tuple[str, ...]:
    """The prompts of `NAME:FOLDER`, read once a process. Raises `SpecError` for a protocol that has none."""
    images = open_protocol(text)
    if not isinstance(images, CocoImages):
        raise SpecError(f"'{text}': this protocol has no prompts; coco2014-30k has.")
    return tuple(images.prompts)


def one_protocol(rows: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a table whose scores of one metric were not made alike: by two protocols, or against two references.

    `rows`: `metric` of each, with `protocol` and `reference` where it has them. Raises `SpecError` naming both.
    """
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        known = first.setdefault(str(row["metric"]), row)
        for what in ("protocol", "reference"):
            one, other = (found if isinstance(found, str) else "" for found in (known.get(what), row.get(what)))
            if one != other:
                named = " and ".join(f"'{value[:40]}'" if value else f"no named {what}" for value in (one, other))
                raise SpecError(
                    f"{row['metric']}: scores by two {what}s, {named}, cannot stand in one table: choose those of one."
                )

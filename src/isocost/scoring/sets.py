"""Sets of images: folders, tars, arrays in memory, and features that were made of images before.

The images of a set are taken in the order of their keys, so that neither the order of files nor how they are spread
over shards moves a value.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from isocost.data.images import CaptionedImages, Decoded, open_images
from isocost.errors import DataError, SpecError
from isocost.scoring.feature_files import SUFFIXES, FeatureFile, count, read_features

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Wanted = Mapping[str, str | int]


class ImageSet:
    """One set of images, or what is known of one; a kind of set overrides what it has.

    `keys`: one an image, in the order of all rows; () where the images have none. `made_by`: name and digest of the
    extractor of features without images, where known. `protocol`: how the images were chosen, "" where that has no
    name.
    """

    name: str
    advice = "give the images themselves"  # where features that are asked for are not at hand, nor images

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    @property
    def made_by(self) -> tuple[str, str] | None:
        return None

    @property
    def protocol(self) -> str:
        return ""

    @property
    def has_images(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, index: int) -> str:
        """What to call image `index` in a message."""
        return f"{self.name}: {self.keys[index]}"

    def read(self, index: int) -> Decoded:
        """Pixels of image `index`. Raises `DataError` where it cannot be read, or the set holds no images."""
        raise DataError(f"{self.name}: holds features, not images.")

    def holds(self, extractor: str) -> bool:
        """Whether features by this extractor (its identity) are at hand."""
        return False

    def features(self, extractor: str) -> np.ndarray:
        """Features [N, D] by an extractor of which it `holds` them."""
        raise DataError(f"{self.name}: holds no features by {extractor}.")

    def caption(self, index: int) -> str:
        """Caption of image `index`. Raises `DataError` where it has none."""
        raise DataError(f"{self.where(index)} has no caption, which this metric needs.")

    def wanted(self, index: int) -> Wanted:
        """What image `index` is to show, by attribute. Raises `DataError` where nothing says so."""
        raise DataError(f"{self.where(index)}: nothing says what it is to show, which caption accuracy needs.")


@dataclass(frozen=True, eq=False)
class FileImages(ImageSet):
    """Images of a folder or of tars, by key. A caption is the image's own, else the one given for its key."""

    name: str
    images: CaptionedImages
    captions: Mapping[str, str] | None = None

    @functools.cached_property
    def _order(self) -> list[int]:
        keys = self.images.keys
        return sorted(range(len(keys)), key=keys.__getitem__)

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        keys = self.images.keys
        return tuple(keys[index] for index in self._order)

    def where(self, index: int) -> str:
        return self.images.where(self._order[index])

    def read(self, index: int) -> Decoded:
        return self.images.decoded(self._order[index])

    def caption(self, index: int) -> str:
        given = (self.captions or {}).get(self.keys[index])
        return given if given is not None else self.images.caption(self._order[index])

    def wanted(self, index: int) -> Wanted:
        attributes = self.images.metadata(self._order[index]).get("attributes")
        return attributes if isinstance(attributes, dict) else super().wanted(index)


@dataclass(frozen=True, eq=False)
class ArrayImages(ImageSet):
    """Images in memory, uint8 [N, H, W, 3], with captions where given."""

    name: str
    images: np.ndarray
    captions: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def where(self, index: int) -> str:
        return f"{self.name}: image {index}"

    def read(self, index: int) -> Decoded:
        return Decoded(self.images[index])

    def caption(self, index: int) -> str:
        return self.captions[index] if self.captions is not None else super().caption(index)


@dataclass(frozen=True, eq=False)
class Features(ImageSet):
    """Features of images that are not here."""

    name: str
    file: FeatureFile

    @property
    def has_images(self) -> bool:
        return False

    def __len__(self) -> int:
        return count(self.file.values)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.file.about.get("keys", ()))

    @property
    def protocol(self) -> str:
        return self.file.about.get("protocol", "")

    @property
    def made_by(self) -> tuple[str, str] | None:
        about = self.file.about
        return (about["extractor"], about["extractor_digest"]) if about.get("extractor") else None

    def holds(self, extractor: str) -> bool:
        return self.made_by is None or identity(*self.made_by) == extractor

    def where(self, index: int) -> str:
        return f"{self.name}: {self.keys[index] if self.keys else f'row {index}'}"

    def features(self, extractor: str) -> np.ndarray:
        if not isinstance(self.file.values, np.ndarray):
            raise DataError(f"{self.name}: holds moments, which serve as a reference; what is scored needs features.")
        return self.file.values


def shared(make: Callable[[K], T], keep: int = 2) -> Callable[[K], T]:
    """`make`, its last results kept, in one thread at a time: images that lie in one block have it made once."""
    made, lock = functools.lru_cache(maxsize=keep)(make), threading.Lock()

    def get(key: K) -> T:
        with lock:
            return made(key)

    return get


def identity(name: str, digest: str) -> str:
    """What tells an extractor from all others: its name, and enough of its digest to tell versions apart."""
    return f"{name}@{digest[:16]}" if digest else name


@dataclass(frozen=True, eq=False)
class Matched(ImageSet):
    """The images of another set in an order of their own."""

    images: ImageSet
    rows: Sequence[int]

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.images.name

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return self.images.where(self.rows[index])

    def read(self, index: int) -> Decoded:
        return self.images.read(self.rows[index])


def matched(targets: ImageSet, images: ImageSet) -> Matched:
    """The target of every image of a set, by key; by place where neither set has keys.

    Raises `DataError` that names an image without a target.
    """
    if not targets.keys and not images.keys and len(targets) == len(images):
        return Matched(targets, range(len(images)))
    if not targets.keys or not images.keys:
        raise DataError(
            f"{images.name} ({len(images)} images) and {targets.name} ({len(targets)}) cannot be matched: give both "
            "the same file names, or both as arrays of one length."
        )
    places = {key: place for place, key in enumerate(targets.keys)}
    alone = [key for key in images.keys if key not in places]
    if alone:
        raise DataError(
            f"{images.name}: {alone[0]} has no target of that name in {targets.name} ({len(alone)} have none)."
        )
    return Matched(targets, [places[key] for key in images.keys])


Source = str | Path | np.ndarray | ImageSet


def open_set(source: Source, name: str | None = None, captions: str | Path | Sequence[str] | None = None) -> ImageSet:
    """A set of images from a folder, a folder of tars, a .tar, a features file, or an array (images or features).

    `captions`: one an image in the order of keys, or a text file with one a line; they take the place of the images'
    own. Raises `DataError` for what cannot be read, an empty folder, or captions that are not as many as the images.
    """
    if isinstance(source, ImageSet):
        return source
    if isinstance(source, np.ndarray):
        return _of_array(source, name or "array", captions)
    path = Path(source)
    if path.suffix in SUFFIXES:
        return Features(name or path.name, read_features(path))
    opened = FileImages(name or path.name or str(path), open_images([path], captions_required=True))
    if captions is None:
        return opened
    given = _captions(captions, len(opened))
    return FileImages(opened.name, opened.images, dict(zip(opened.keys, given, strict=True)))


def _of_array(array: np.ndarray, name: str, captions: str | Path | Sequence[str] | None) -> ImageSet:
    if array.ndim == 2 and array.dtype.kind == "f":
        return Features(name, FeatureFile(array))
    if array.ndim != 4 or array.dtype != np.uint8 or array.shape[3] != 3 or len(array) == 0:
        raise DataError(
            f"{name}: expected images uint8 [N, H, W, 3] or features [N, D], found {array.dtype} {list(array.shape)}."
        )
    return ArrayImages(name, array, None if captions is None else _captions(captions, len(array)))


def _captions(captions: str | Path | Sequence[str], count: int) -> list[str]:
    where = "captions"
    if isinstance(captions, str | Path):
        where = str(captions)
        try:
            captions = Path(captions).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: cannot read captions: {error}") from None
    if len(captions) != count:
        raise SpecError(f"{where}: {len(captions)} captions for {count} images: give one an image, in order of keys.")
    return list(captions)

"""The captioned images that a `DataSource` names, as encoders want them: squares of one size, by number."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from isocost.data import scenes
from isocost.data.filters import filtered
from isocost.data.images import open_images, square
from isocost.data.pairs import Pairs, enlarged
from isocost.errors import DataError, SpecError
from isocost.specs import DataSource, digest_of

FILTERED = "filtered.safetensors"  # in the folder of what is encoded
MOST_DECODERS = 8


class Scenes:
    """The procedural images of a source, drawn in batches. Held-out ones are drawn from a seed of their own.

    count: images. digest: what they are a function of. shards: images in each; all in one, drawn where they are needed.
    """

    report: dict[str, Any] | None = None
    sources: list[dict[str, Any]] = []  # noqa: RUF012  (no files)

    def __init__(self, source: DataSource, split: str):
        if split != "train":
            raise SpecError(f"scenes are endless and have no split '{split}': draw held-out ones from another seed.")
        self._source = source
        self.resolution = source.resolution
        self.count = source.images or 0
        self.shards = (self.count,)
        self.digest = digest_of([source.seed, source.scenes.canonical(), self.count])

    def captions(self, indices: Sequence[int]) -> list[str]:
        described = scenes.describe_all(self._source.seed, indices, self._source.scenes)
        return [caption for caption, _ in described]

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 [N,H,W,3]."""
        return scenes.draw(self._source.seed, indices, self._source.resolution, self._source.scenes)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Nothing is far away."""


class Files:
    """The captioned images of a source's folders or tars, cut and resized to squares; of the training images, those
    that pass its filters, whose index is left in `folder`.

    count: images. digest: of their content. shards: images in each. report: the filters' counts, None without any.
    sources: the shards and folders that are read, by place and digest.
    """

    def __init__(self, source: DataSource, split: str, folder: Path | None = None):
        paths = {"train": source.train, "val": source.val}.get(split)
        if not paths:
            raise SpecError(f"data.{split} names no folder or shard of captioned images.")
        self._images = open_images(paths)
        self.resolution = source.resolution
        self.sources = self._images.sources
        found = None
        if source.filters and split == "train":
            found = filtered(self._images, source.filters, folder and folder / FILTERED)
        self.report = found.report if found else None
        there = len(self._images) if found is None else len(found.kept)
        self.count = there if source.images is None or split != "train" else source.images
        if self.count > there:
            passing = " that pass the filters" if found else ""
            raise DataError(f"{paths[0]}: {self.count} images are asked for, but there are {there}{passing}")
        self._numbers = np.arange(self.count) if found is None else found.kept[: self.count]
        self.digest = digest_of([found.digest if found else self._images.digest, self.count])

    @cached_property
    def shards(self) -> tuple[int, ...]:
        ends = np.cumsum(self._images.shards)
        return tuple(np.bincount(np.searchsorted(ends, self._numbers, side="right"), minlength=len(ends)).tolist())

    def captions(self, indices: Sequence[int]) -> list[str]:
        return [self._images.caption(int(self._numbers[index])) for index in indices]

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 [N,H,W,3]."""
        squares = list(self._decoders.map(self._square, indices))
        return np.stack(squares) if squares else np.empty((0, self.resolution, self.resolution, 3), np.uint8)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Bring shards here in the background, where they are remote."""
        self._images.prefetch(shards)

    def _square(self, index: int) -> np.ndarray:
        return square(self._images.decoded(int(self._numbers[index])).pixels, self.resolution)

    @cached_property
    def _decoders(self) -> ThreadPoolExecutor:
        """Pillow decodes outside of Python's lock."""
        return ThreadPoolExecutor(min(MOST_DECODERS, os.cpu_count() or 1))


class Photographs:
    """Crops of a source's photographs with what is left of them, degraded: `isocost.data.pairs`.

    count: pairs. digest: of the photographs and of how pairs are drawn. shards: all pairs in one, as a crop may be of
    any photograph. sources: the shards and folders that are read, by place and digest.
    """

    report: dict[str, Any] | None = None

    def __init__(self, source: DataSource, split: str):
        paths = {"train": source.train, "val": source.val}.get(split)
        if not paths:
            raise SpecError(f"data.{split} names no folder or shard of photographs.")
        assert source.degradation is not None and source.images is not None
        images = open_images(paths, captions_required=False)
        self._pairs = Pairs(images, source.resolution, source.degradation, source.seed)
        self.resolution, self.count = source.resolution, source.images
        self.shards = (self.count,)
        self.sources = images.sources
        how = [self._pairs.degradation.digest, source.seed, source.resolution]
        self.digest = digest_of([images.digest, *how, self.count])
        self._crops = functools.lru_cache(maxsize=2)(self._cut)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """None is read: the empty one of each."""
        return [""] * len(indices)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 [N,R,R,3]."""
        return self._crops(tuple(indices))

    def conditions(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 [N,R,R,3]: what is left of each, enlarged."""
        highs = self._crops(tuple(indices))
        return np.stack([enlarged(self._pairs.low(*pair)) for pair in zip(indices, highs, strict=True)])

    def prefetch(self, shards: Iterable[int]) -> None:
        """Crops are of all photographs alike: none is nearer than the others."""

    def _cut(self, indices: tuple[int, ...]) -> np.ndarray:
        return np.stack(list(self._decoders.map(self._pairs.high, indices)))

    @cached_property
    def _decoders(self) -> ThreadPoolExecutor:
        """Pillow decodes outside of Python's lock."""
        return ThreadPoolExecutor(min(MOST_DECODERS, os.cpu_count() or 1))


Source = Scenes | Files | Photographs


def open_source(source: DataSource, split: str = "train", folder: Path | None = None) -> Source:
    """The images of a split. Raises `SpecError` where the source has none, `DataError` for what cannot be read."""
    if source.degradation is not None:
        return Photographs(source, split)
    return Scenes(source, split) if source.kind == "scenes" else Files(source, split, folder)

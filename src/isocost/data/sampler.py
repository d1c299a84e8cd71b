"""Which image is seen when, and which random numbers go with it: functions of (seed, images seen) and nothing else.

So there is no sampler state to save, and a run that resumes, or runs on more ranks, sees what it would have seen.

There are two orders of an epoch, each with every image once. Where any image is as near as another (memory maps), a
permutation of them all. Where shards come from afar, one in which few shards are needed at a time: shards are permuted,
and their images, one shard after the other, are shuffled within windows of so many images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np


def generator(seed: int, purpose: str, count: int) -> np.random.Generator:
    """The random numbers for one purpose ("noise", "timesteps", ...) at one moment, counted in images or epochs."""
    key = hashlib.sha256(f"isocost v1 {seed} {purpose} {count}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


@lru_cache(maxsize=2)  # a batch spans two epochs at most, unless the data set is smaller than a batch
def permutation(images: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: int64 [images], every image once."""
    order = generator(seed, "order", epoch).permutation(images)
    order.setflags(write=False)
    return order


class _ShardOrder(NamedTuple):
    """The shards of an epoch in their order: their numbers, each one's first image, and at which place it begins."""

    numbers: np.ndarray
    first: np.ndarray
    begins: np.ndarray


@lru_cache(maxsize=2)
def _shard_order(shards: tuple[int, ...], seed: int, epoch: int) -> _ShardOrder:
    numbers = generator(seed, "shards", epoch).permutation(len(shards))
    sizes = np.array(shards, dtype=np.int64)
    return _ShardOrder(numbers, (np.cumsum(sizes) - sizes)[numbers], np.cumsum(sizes[numbers]) - sizes[numbers])


def _shard_at(order: _ShardOrder, places: np.ndarray) -> np.ndarray:
    """Which of an epoch's shards, counted in its order, holds each place."""
    return np.searchsorted(order.begins, places, side="right") - 1


@lru_cache(maxsize=4)
def windowed(shards: tuple[int, ...], window: int, seed: int, epoch: int, number: int) -> np.ndarray:
    """The images of an epoch's window `number`, in the order in which they are seen: int64 [window], the last shorter.

    shards: images in each. Consecutive images of permuted shards, shuffled; they touch at most
    2 + (window - 2) // (images in the smallest shard) shards.
    """
    order = _shard_order(shards, seed, epoch)
    places = np.arange(number * window, min((number + 1) * window, sum(shards)))
    at = _shard_at(order, places)
    images = order.first[at] + places - order.begins[at]
    shuffled = images[generator(seed, f"window of epoch {epoch}", number).permutation(len(images))]
    shuffled.setflags(write=False)
    return shuffled


def indices(
    images: int,
    seed: int,
    start: int,
    count: int,
    rank: int = 0,
    world: int = 1,
    *,
    shards: Sequence[int] = (),
    window: int | None = None,
) -> np.ndarray:
    """Which images are the `start`-th to the (start + count - 1)-th seen: int64 [count / world], the share of `rank`.

    images: size of the data set. shards: images in each of its shards; they count where there is a `window`, the images
    that a shuffle reaches over (None: all). Shares are contiguous: those of ranks 0, 1, ... in order are the whole
    batch, whatever the world.
    """
    if count % world:
        raise ValueError(f"a batch of {count} does not split over {world} ranks")
    share = count // world
    epochs, places = np.divmod(np.arange(start + rank * share, start + (rank + 1) * share), images)
    if window is None:
        parts = [permutation(images, seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate([np.empty(0, np.int64), *parts])
    sizes = _sizes(images, shards)
    numbers = places // window
    parts = [
        windowed(sizes, window, seed, int(epoch), int(number))[places[(epochs == epoch) & (numbers == number)] % window]
        for epoch, number in dict.fromkeys(zip(epochs.tolist(), numbers.tolist(), strict=True))
    ]
    return np.concatenate([np.empty(0, np.int64), *parts])


def next_shards(images: int, seed: int, start: int, *, shards: Sequence[int], window: int | None) -> list[int]:
    """Which shards are needed from the `start`-th image seen on, to the end of the window after it: in that order."""
    if window is None:
        return []
    sizes = _sizes(images, shards)
    epoch, place = divmod(start, images)
    this = epoch, place // window * window
    following = (epoch, this[1] + window) if this[1] + window < images else (epoch + 1, 0)
    found: dict[int, None] = {}
    for at_epoch, begin in (this, following):
        order = _shard_order(sizes, seed, at_epoch)
        first, last = _shard_at(order, np.array([begin, min(begin + window, images) - 1]))
        found |= dict.fromkeys(order.numbers[first : last + 1].tolist())
    return list(found)


def _sizes(images: int, shards: Sequence[int]) -> tuple[int, ...]:
    sizes = shards if isinstance(shards, tuple) else tuple(shards)
    if sum(sizes) != images:
        raise ValueError(f"shards hold {sum(sizes)} images, the data set {images}")
    return sizes

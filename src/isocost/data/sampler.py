"""Which image is seen when, and which random numbers go with it: functions of (seed, images seen) and nothing else.

So there is no sampler state to save, and a run that resumes, or runs on more ranks, sees what it would have seen.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

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


def indices(images: int, seed: int, start: int, count: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Which images are the `start`-th to the (start + count - 1)-th seen: int64 [count / world], the share of `rank`.

    images: size of the data set. Shares are contiguous: those of ranks 0, 1, ... in order are the whole batch.
    """
    if count % world:
        raise ValueError(f"a batch of {count} does not split over {world} ranks")
    share = count // world
    seen = np.arange(start + rank * share, start + (rank + 1) * share)
    epochs, places = np.divmod(seen, images)
    chosen = np.empty(share, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = permutation(images, seed, int(epoch))[places[here]]
    return chosen

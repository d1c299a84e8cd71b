"""Square crops of photographs at their own size, by number: what is trained on photographs sees these."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from isocost.data.images import CaptionedImages
from isocost.data.sampler import generator, permutation
from isocost.errors import DataError

CACHE_BYTES = 2**29


class Crops:
    """Crops of `side` pixels, without end: in each epoch one of every photograph; `mirror`: half of them mirrored.

    Crop `number` is a function of (photographs, side, seed, mirror, number), whatever was asked for before, by however
    many threads. Decoded photographs are kept, up to `cache_bytes` in all.

    Raises `DataError` naming a photograph that is smaller than a crop, or that is no image.
    """

    def __init__(
        self,
        photographs: CaptionedImages,
        side: int,
        seed: int,
        mirror: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.photographs = photographs
        self.side = side
        self.seed = seed
        self.mirror = mirror
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._room = cache_bytes
        self._lock = threading.Lock()
        for index in range(len(photographs)):
            width, height = photographs.size(index)
            if min(width, height) < side:
                raise DataError(
                    f"{photographs.where(index)}: {width} x {height} pixels, smaller than a crop of {side}: take "
                    "smaller crops, or leave it out."
                )

    def images(self, numbers: Sequence[int]) -> np.ndarray:
        """uint8 [N, side, side, 3]."""
        return np.stack([self.image(number) for number in numbers])

    def image(self, number: int) -> np.ndarray:
        """uint8 [side, side, 3]."""
        epoch, place = divmod(number, len(self.photographs))
        photograph = self._decoded(int(permutation(len(self.photographs), self.seed, epoch)[place]))
        random = generator(self.seed, "crop", number)
        top, left = (int(random.integers(0, size - self.side + 1)) for size in photograph.shape[:2])
        crop = photograph[top : top + self.side, left : left + self.side]
        return np.ascontiguousarray(crop[:, ::-1] if self.mirror and random.random() < 0.5 else crop)

    def _decoded(self, index: int) -> np.ndarray:
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        pixels = self.photographs.decoded(index).pixels  # outside of the lock: threads decode side by side
        with self._lock:
            if index not in self._kept:
                self._kept[index] = pixels
                self._room -= pixels.nbytes
            while self._room < 0 and len(self._kept) > 1:
                self._room += self._kept.popitem(last=False)[1].nbytes
        return pixels

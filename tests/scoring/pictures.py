"""Small pictures, and an extractor of them that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Means:
    """Mean colours of the four quarters of an image, and how they vary: D = 24. Captions by their letters."""

    name: str = "means"
    digest: str = "ab" * 32
    dims: int = 24
    context: int = 40

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8 and images.ndim == 4
        halves = [np.array_split(part, 2, axis=2) for part in np.array_split(images.astype(np.float64), 2, axis=1)]
        quarters = [quarter for row in halves for quarter in row]
        found = [statistic(quarter, axis=(1, 2)) / 64 for quarter in quarters for statistic in (np.mean, np.std)]
        return np.concatenate(found, axis=1).astype(np.float32)

    def text(self, captions: Sequence[str]) -> np.ndarray:
        letters = [[caption.count(letter) + 1.0 for letter in "abcdefghijklmnopqrstuvwx"] for caption in captions]
        return np.array(letters, dtype=np.float32)

    def count_truncated(self, captions: Sequence[str]) -> int:
        return sum(len(caption) > self.context for caption in captions)


def pictures(count: int, seed: int = 0, size: int = 16, shift: float = 0.0) -> np.ndarray:
    """Noise about a colour of each picture's own, uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(seed)
    colours = rng.uniform(60, 190, (count, 1, 1, 3)) + shift
    return np.clip(colours + rng.normal(0, 20, (count, size, size, 3)), 0, 255).astype(np.uint8)


def write_folder(folder: Path, images: np.ndarray, captions: Sequence[str] | None = None, prefix: str = "") -> Path:
    """Images as PNG files, 000.png and on, with captions beside them where given."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{prefix}{index:03d}.png")
        if captions is not None:
            (folder / f"{prefix}{index:03d}.txt").write_text(captions[index])
    return folder

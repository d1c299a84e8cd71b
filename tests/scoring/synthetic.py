"""Features whose statistics are known."""

from __future__ import annotations

import numpy as np


def spread_features(n: int, spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    """Gaussian features, axes of deviation `spectrum`, rotated and shifted."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))[0]
    return (rng.standard_normal((n, len(spectrum))) * spectrum) @ rotation + 1


ATTRIBUTES = {"colour": ("red", "green", "blue"), "count": (1, 2)}
WANTED = [{"colour": "red", "count": 2}, {"colour": "blue"}, {"count": 1, "mood": "calm"}, {"colour": "red"}, {}]


def one_hot(found: list, values: tuple) -> np.ndarray:
    return np.array([[5.0 if value == name else -1.0 for name in values] for value in found])


LOGITS = {
    "colour": one_hot(["red", "green", "red", "red", "red"], ATTRIBUTES["colour"]),
    "count": one_hot([1, 1, 1, 2, 2], ATTRIBUTES["count"]),
}

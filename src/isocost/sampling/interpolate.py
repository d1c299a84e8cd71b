"""Between two prompts: mixtures of their embeddings, all tokens of them, as what a network is given (arXiv 2404.01367,
Fig. 24)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from isocost.data.prompts import Blend, Drawn
from isocost.encoders.text import TextEncoder
from isocost.errors import lookup

PARALLEL = 1e-6  # radians: below, an arc is a line


def embedded(text_encoder: TextEncoder, drawn: Sequence[Drawn]) -> np.ndarray:
    """What networks are given for each prompt, fp32 [N, L, D]: its embedding, or a mixture of two."""
    ends = [(one.first, one.second) if isinstance(one, Blend) else (one, one) for one in drawn]
    texts = list(dict.fromkeys(text for pair in ends for text in pair))
    embeddings = dict(zip(texts, text_encoder.encode(texts), strict=True))
    return np.stack(
        [
            mixed(embeddings[one.first], embeddings[one.second], one.weight, one.path)
            if isinstance(one, Blend)
            else embeddings[one]
            for one in drawn
        ]
    )


def mixed(first: np.ndarray, second: np.ndarray, weight: float, path: str = "linear") -> np.ndarray:
    """The point between embeddings [L, D] where the first has this weight; at 1 and 0 they themselves, to the bit.

    Raises `SpecError` for an unknown path.
    """
    along = lookup(PATHS, path, "path between prompts")
    if weight in (0, 1):
        return first if weight else second
    return along(first.astype(np.float64), second.astype(np.float64), weight).astype(np.float32)


def _linear(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    return weight * first + (1 - weight) * second


def _spherical(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """Each token's direction on the arc between its two (Shoemake, SIGGRAPH 1985), its length on the line between."""
    lengths = (np.linalg.norm(first, axis=-1, keepdims=True), np.linalg.norm(second, axis=-1, keepdims=True))
    a, b = (end / np.maximum(length, 1e-12) for end, length in zip((first, second), lengths, strict=True))
    angle = np.arccos(np.clip((a * b).sum(-1, keepdims=True), -1, 1))
    bent = (angle > PARALLEL) & (np.pi - angle > PARALLEL)
    sine = np.where(bent, np.sin(angle), 1.0)
    arc = (np.sin(weight * angle) * a + np.sin((1 - weight) * angle) * b) / sine
    return np.where(bent, arc * _linear(lengths[0], lengths[1], weight), _linear(first, second, weight))


PATHS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {"linear": _linear, "spherical": _spherical}

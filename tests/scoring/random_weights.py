"""Weights for networks whose published ones are not here: a function of each tensor's name and shape alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch


def random_weights(shapes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors like those of a `state_dict`, scaled so that signals keep their size through the layers."""
    return {name: torch.from_numpy(_tensor(name, tuple(value.shape))) for name, value in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith(("running_var", "bn.weight")):
        return random.uniform(0.75, 1.25, shape).astype(np.float32)
    if name.startswith("lin"):  # heads of LPIPS, none below 0
        return random.uniform(0, 0.1, shape).astype(np.float32)
    spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return (spread * random.standard_normal(shape, dtype=np.float32)).astype(np.float32)


def random_images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [N, H, W, 3]: coarse blocks under noise, so that neither is all there is."""
    random = np.random.Generator(np.random.Philox(key=seed))
    blocks = random.integers(0, 200, (count, -(-height // 8), -(-width // 8), 3))
    coarse = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return (coarse + random.integers(0, 56, coarse.shape)).astype(np.uint8)

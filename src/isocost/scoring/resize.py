"""How images come to the size that a metric's network reads, by name and version: a resize is part of a score.

Two libraries with the same weights differ by a percent in their features where their resizes differ ("On Aliased
Resizing and Surprising Subtleties in GAN Evaluation", arXiv 2104.11222). A name's arithmetic never changes; another
arithmetic gets another name. All take pixels [N, C, H, W] of 0 to 255, uint8 or float, and give float32
[N, C, size, size] of 0 to 255; no image depends on the others of its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

Resize = Callable[[torch.Tensor, int], torch.Tensor]


def tf1_bilinear(images: torch.Tensor, size: int) -> torch.Tensor:
    """TensorFlow 1's `resize_bilinear`, which the first FID used: pixel i reads the place i H / size, and aliases.

    Those places are the ones of aligned corners on an image with its last row and column doubled.
    """
    if images.shape[2:] == (size, size):
        return images.float()
    doubled = functional.pad(images.float(), (0, 1, 0, 1), mode="replicate")
    return functional.interpolate(doubled, (size + 1, size + 1), mode="bilinear", align_corners=True)[..., :-1, :-1]


def clean_bicubic(images: torch.Tensor, size: int) -> torch.Tensor:
    """Pillow's BICUBIC on float pixels, which widens its kernel by the scale and so does not alias; not rounded.

    In float64, as Pillow has it: float32 misses by up to 0.01 of 255, and is no faster.
    """
    if images.shape[2:] == (size, size):
        return images.float()
    resized = functional.interpolate(images.double(), (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 255).float()


RESIZES: dict[str, Resize] = {
    "tf1-bilinear-v1": tf1_bilinear,
    "clean-bicubic-v1": clean_bicubic,
}

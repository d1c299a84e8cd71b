"""What goes into every network here: batches of one size, so that no result depends on what else was asked for, and
images of one size."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional


def in_fixed_batches(
    network: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, size: int, side_by_side: bool = False
) -> np.ndarray:
    """fp32 rows of `network`, called on batches of `size` rows only: no result depends on how many rows there are.

    `side_by_side`, for a network on the CPU that may be called from several threads: as many batches at once as torch
    has threads, each on one of them. No thread waits for another, which is up to three times as fast as all threads on
    one batch where cores are shared, and results do not depend on the number of threads either.
    """

    def run(batch: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            padded = torch.cat([batch, batch[:1].expand(size - len(batch), *batch.shape[1:])])
            return network(padded)[: len(batch)].float().cpu().numpy()

    batches = rows.split(size)
    threads = torch.get_num_threads()
    if not side_by_side or threads == 1:
        return np.concatenate([run(batch) for batch in batches])
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return np.concatenate(list(pool.map(run, batches)))
    finally:
        torch.set_num_threads(threads)  # the workers' 1 is also the default of threads to come


def resize(images: torch.Tensor, size: int, crop: int | None = None) -> torch.Tensor:
    """[N, C, H, W] in [0, 1] -> [N, C, crop, crop]: shorter side to `size` by antialiased bicubic, then the central
    square of side `crop` (`size` where not given)."""
    height, width = images.shape[2:]
    shape = [round(side * size / min(height, width)) for side in (height, width)]
    if shape != [height, width]:
        images = functional.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    crop = crop or size
    top, left = ((side - crop) // 2 for side in shape)
    return images[:, :, top : top + crop, left : left + crop]

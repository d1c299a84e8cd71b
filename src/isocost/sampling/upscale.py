"""Low-resolution images to images four times as large, by a checkpoint that was trained for super-resolution.

What is upscaled is enlarged by bicubic, encoded (the latent's mode) and laid beside the noise; the prompt is empty and
nothing guides. The image is a function of (image id, replicate), its pixels, the plan and the engine.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isocost.data.degradation import SCALE
from isocost.data.pairs import enlarged
from isocost.diffusion.plans import evaluations_of
from isocost.encoders.autoencoder import Autoencoder
from isocost.errors import DataError, SpecError
from isocost.sampling.engine import network_of, sample_latents, threads
from isocost.sampling.generate import Chunk, Pipeline
from isocost.sampling.tiling import Corner, Tiled, Tiles, cut, woven
from isocost.specs import EngineSpec, SamplingPlan

ALIGNED = 8  # every family takes latents of sides that this divides
SMALLEST = 4  # pixels a side: there is nothing to enlarge in less
AUTOENCODER_TILE, AUTOENCODER_OVERLAP = 64, 8  # latent cells: its norms see more of an image than the network's do
Report = Callable[[int, int], None]


class LowRes(NamedTuple):
    """An image to upscale: what its noise is keyed by, and its pixels, uint8 [h, w, 3]."""

    id: str
    pixels: np.ndarray
    replicate: int = 0


def upscale(pipeline: Pipeline, plan: SamplingPlan, engine: EngineSpec, images: Sequence[LowRes]) -> Chunk:
    """Up to engine.batch images of one size, whole: uint8 [n, 4 h, 4 w, 3].

    Raises:
        SpecError: the checkpoint takes prompts, or the plan is guided.
        DataError: images of several sizes, or of a side that does not become a whole latent.
    """
    _check(pipeline, plan)
    sizes = {image.pixels.shape for image in images}
    if len(sizes) > 1:
        raise DataError(f"images of {len(sizes)} sizes cannot go through a network together: upscale each alone.")
    start = time.perf_counter()
    with threads(engine.threads):
        condition = pipeline.autoencoder.encode(np.stack([enlarged(image.pixels) for image in images]))
        null_context = pipeline.text_encoder.encode([""])[0]
        latents, evaluations = sample_latents(
            pipeline.network,
            plan,
            np.repeat(null_context[None], len(images), axis=0),
            null_context,
            [(image.id, image.replicate) for image in images],
            condition.shape[1:],
            engine,
            condition,
        )
        made = pipeline.autoencoder.decode(latents)
    return Chunk(made, sum(evaluations.values()), (time.perf_counter() - start) / len(images))


def upscale_whole(
    pipeline: Pipeline,
    plan: SamplingPlan,
    engine: EngineSpec,
    image: LowRes,
    tile: int | None = None,
    overlap: int | None = None,
    report: Report = lambda done, total: None,
) -> np.ndarray:
    """One image of any size: uint8 [h, w, 3] -> uint8 [4 h, 4 w, 3], in tiles that share one trajectory.

    tile, overlap: in pixels of the image. Default: the size that the checkpoint was trained at, and a quarter of it.
    report: called with (evaluations done, in all).

    What is held at once is the canvas's latents and pixels, and the activations of engine.batch tiles: they do not grow
    with the image. Raises `SpecError` as `upscale`, and for tiles that cannot be; `DataError` for an image too small.
    """
    _check(pipeline, plan)
    height, width = image.pixels.shape[:2]
    if min(height, width) < SMALLEST:
        raise DataError(
            f"{image.id}: {width} x {height} pixels: too small to be upscaled ({SMALLEST} a side at least)."
        )
    factor = pipeline.autoencoder.factor
    side = pipeline.latent_shape[1] if tile is None else tile * SCALE // factor
    if side % ALIGNED:
        raise SpecError(f"tile {tile}: take a multiple of {ALIGNED * factor // SCALE} pixels.")
    shared = side // 4 if overlap is None else overlap * SCALE // factor
    canvas = enlarged(_padded(image.pixels, side * factor // SCALE, max(factor // SCALE, 1)))
    tiles = Tiles(canvas.shape[0] // factor, canvas.shape[1] // factor, side, shared)
    with threads(engine.threads), torch.inference_mode():
        condition = _encoded(pipeline.autoencoder, canvas, tiles).to(engine.device)
        counted, total = itertools.count(1), sum(evaluations_of(plan).values())
        networks = {
            ref.content_digest: Tiled(
                network_of(pipeline.network, ref), condition, tiles, engine.batch, lambda: report(next(counted), total)
            )
            for ref in evaluations_of(plan)
        }
        null_context = pipeline.text_encoder.encode([""])
        alone = engine.model_copy(update={"batch": 1})
        key = [(image.id, image.replicate)]
        channels, rows, columns = condition.shape
        shape = (channels, rows, columns)
        latents, _ = sample_latents(networks, plan, null_context, null_context[0], key, shape, alone)
        return _decoded(pipeline.autoencoder, latents[0].cpu(), tiles)[: SCALE * height, : SCALE * width]


def _check(pipeline: Pipeline, plan: SamplingPlan) -> None:
    if not pipeline.takes_image:
        raise SpecError("this checkpoint draws from prompts: `isocost sample`. Upscaling takes one trained for it.")
    if plan.guidance.active:
        raise SpecError("an upscaling checkpoint has no prompt to be guided by: use guidance scale 1.")


def _padded(pixels: np.ndarray, least: int, step: int) -> np.ndarray:
    """Mirrored at the bottom and right to `least` pixels a side, and a multiple of `step`."""
    more = [(0, max(least, -(-side // step) * step) - side) for side in pixels.shape[:2]]
    return np.pad(pixels, (*more, (0, 0)), mode="symmetric")


def _larger(tiles: Tiles) -> Tiles:
    """The autoencoder's tiles of the same canvas."""
    side = min(AUTOENCODER_TILE, tiles.height, tiles.width)
    return Tiles(tiles.height, tiles.width, side, min(AUTOENCODER_OVERLAP, side // 2))


def _encoded(autoencoder: Autoencoder, canvas: np.ndarray, tiles: Tiles) -> Tensor:
    """[C, H, W] of a canvas uint8 [f H, f W, 3]."""
    tiles, factor = _larger(tiles), autoencoder.factor

    def encode(corners: list[Corner]) -> Tensor:
        side = factor * tiles.side
        squares = [
            canvas[factor * row : factor * row + side, factor * col : factor * col + side] for row, col in corners
        ]
        return torch.from_numpy(autoencoder.encode(np.stack(squares)))

    return torch.cat(list(woven(tiles, encode)), dim=1)


def _decoded(autoencoder: Autoencoder, latents: Tensor, tiles: Tiles) -> np.ndarray:
    """uint8 [f H, f W, 3] of a canvas of latents [C, H, W]."""
    tiles = _larger(tiles)

    def decode(corners: list[Corner]) -> Tensor:
        squares = autoencoder.decode(cut(latents, corners, tiles.side))
        return torch.from_numpy(squares).permute(0, 3, 1, 2).float()

    bands = woven(tiles, decode, autoencoder.factor)
    return np.concatenate([band.round().to(torch.uint8).permute(1, 2, 0).numpy() for band in bands])

"""What a network is trained to do. An objective is one function, and one line of `OBJECTIVES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isocost.specs import DISTILLED, TrainSpec
from isocost.training.objectives import consistency, denoise, dreambooth, guided, superres
from isocost.training.objectives.batch import Batch, Objective
from isocost.training.objectives.teaching import Networks

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "denoise": denoise.loss,
    "superres": superres.loss,
    "dreambooth": dreambooth.loss,
    "consistency": consistency.loss,
    "guided": guided.loss,
}
"""An `Objective` each; those of `isocost.specs.DISTILLED` take `Networks` where the others take a network."""
TAKE_IMAGES = ("superres",)
"""Objectives of networks that are given an image's latent beside the noise, and of whose students too."""


def takes_image(spec: TrainSpec) -> bool:
    """Whether the network of a run is given an image's latent beside the noise; a student is if its teacher is."""
    return spec.objective in TAKE_IMAGES or (spec.objective in DISTILLED and spec.model.takes_image)


__all__ = ["OBJECTIVES", "TAKE_IMAGES", "Batch", "Networks", "Objective", "takes_image"]

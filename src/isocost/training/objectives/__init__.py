"""What a network is trained to do. An objective is one function, and one line of `OBJECTIVES`."""

from __future__ import annotations

from isocost.training.objectives import denoise, superres
from isocost.training.objectives.batch import Batch, Objective

OBJECTIVES: dict[str, Objective] = {"denoise": denoise.loss, "superres": superres.loss}
TAKE_IMAGES = ("superres",)
"""Objectives of networks that are given an image's latent beside the noise."""

__all__ = ["OBJECTIVES", "TAKE_IMAGES", "Batch", "Objective"]

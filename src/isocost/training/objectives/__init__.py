"""What a network is trained to do. An objective is one function, and one line of `OBJECTIVES`."""

from __future__ import annotations

from isocost.training.objectives import denoise
from isocost.training.objectives.batch import Batch, Objective

OBJECTIVES: dict[str, Objective] = {"denoise": denoise.loss}

__all__ = ["OBJECTIVES", "Batch", "Objective"]

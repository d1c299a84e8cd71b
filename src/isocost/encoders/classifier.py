"""A small convolutional network that reads a scene's attributes: exact caption accuracy for generated images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from isocost.encoders.inputs import in_fixed_batches, resize
from isocost.encoders.weights import (
    content_digest,
    load_into,
    locate,
    quiet_random,
    read_config,
    read_weights,
    write_weights,
)
from isocost.errors import DataError

WEIGHTS = "model.safetensors"
IMAGES_A_CALL = 64


class AttributeNet(nn.Module):
    """Convolutions down to 4 x 4 cells, which are kept apart (places and counts matter), then a linear head each."""

    def __init__(self, classes: Mapping[str, int], width: int, resolution: int):
        super().__init__()
        halvings = int(np.log2(resolution // 4))
        channels = [3] + [width * min(2**level, 4) for level in range(halvings + 1)]
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(channels)):
            stride = 1 if level == 0 else 2
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()] if level else []
        hidden = 8 * width
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels[-1], hidden), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, count) for name, count in classes.items()})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """[N, 3, S, S] in [-1, 1] -> logits [N, K] for each attribute."""
        features = self.trunk(pixels)
        return {name: head(features) for name, head in self.heads.items()}


class AttributeClassifier:
    """A frozen `AttributeNet`. attributes: name -> its values, in the order of the logits. digest: of all of it."""

    def __init__(
        self, module: AttributeNet, attributes: Mapping[str, Sequence[str | int]], width: int, resolution: int
    ):
        self.module = module.eval().requires_grad_(False)
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        self.resolution = resolution
        self.config = {
            "model_type": "isocost_attributes",
            "width": width,
            "resolution": resolution,
            "attributes": {name: list(values) for name, values in self.attributes.items()},
        }
        self.digest = content_digest(self.config, module)

    def logits(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 [N, H, W, 3], resized where they are of another size -> attribute -> fp32 [N, K]."""

        def network(batch: torch.Tensor) -> torch.Tensor:
            pixels = resize(batch.permute(0, 3, 1, 2).float() / 255, self.resolution)
            return torch.cat(list(self.module(pixels * 2 - 1).values()), dim=1)

        rows = in_fixed_batches(network, torch.from_numpy(np.ascontiguousarray(images)), IMAGES_A_CALL)
        ends = np.cumsum([len(values) for values in self.attributes.values()])
        return dict(zip(self.attributes, np.split(rows, ends[:-1], axis=1), strict=True))

    def correct(self, images: np.ndarray, attributes: Sequence[Mapping[str, str | int]]) -> dict[str, np.ndarray]:
        """Whether each image shows its attributes: name -> fp64 [N], 1 or 0, NaN where the scene has no such one."""
        found = {}
        for name, logits in self.logits(images).items():
            values = self.attributes[name]
            wanted = np.array([values.index(row[name]) if name in row else -1 for row in attributes])
            found[name] = np.where(wanted < 0, np.nan, logits.argmax(1) == wanted)
        return found

    def save(self, folder: str | Path) -> Path:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        write_weights(self.module.state_dict(), folder / WEIGHTS)
        return folder


def load_classifier(ref: str | Path) -> AttributeClassifier:
    """Load a shipped asset ("scenes-attributes") or a saved folder. Raises `DataError` as the other loaders do."""
    folder = locate(ref, "classifier", ("config.json", WEIGHTS))
    config = read_config(folder)
    if config.get("model_type") != "isocost_attributes":
        raise DataError(f"{folder}: config.json is of '{config.get('model_type')}', not of an attribute classifier.")
    attributes = {name: tuple(values) for name, values in config["attributes"].items()}
    classes = {name: len(values) for name, values in attributes.items()}
    with quiet_random():
        module = AttributeNet(classes, config["width"], config["resolution"])
    load_into(module, read_weights(folder / WEIGHTS), folder / WEIGHTS)
    return AttributeClassifier(module, attributes, config["width"], config["resolution"])

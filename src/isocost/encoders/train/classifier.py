"""Train the classifier that reads a scene's attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from isocost.encoders.classifier import AttributeClassifier, AttributeNet, load_classifier
from isocost.encoders.train.steps import (
    Attributes,
    Images,
    Settings,
    Tell,
    optimise,
    pixels,
    resized,
    seeded,
    silent,
)


@dataclass(frozen=True)
class ClassifierSettings(Settings):
    """width: channels at full resolution. noise: largest deviation added in training, of a range of 2."""

    width: int = 24
    resolution: int = 32
    images: int = 80_000
    batch: int = 64
    lr: float = 3e-3
    muon_lr: float = 0.02
    noise: float = 0.08


def train_classifier(
    images: Images,
    attributes: Attributes,
    values: Mapping[str, Sequence[str | int]],
    settings: ClassifierSettings,
    seed: int,
    folder: str | Path,
    *,
    work: Path | None = None,
    tell: Tell = silent,
) -> AttributeClassifier:
    """Train one network with a head for each attribute, mean cross-entropy where an image has it; save and return it.

    `values`: attribute -> its possible values. Noise of a random deviation up to `noise` on half of each batch keeps it
    from leaning on the last bits of clean drawings. `work` and `tell`, and what is raised: as `optimise`.
    """
    with seeded(seed):
        classes = {name: len(options) for name, options in values.items()}
        module = AttributeNet(classes, settings.width, settings.resolution)
        noise = torch.Generator().manual_seed(seed)

        def loss(step: int) -> torch.Tensor:
            numbers = settings.numbers(step)
            seen = pixels(resized(images(numbers), settings.resolution))
            strength = settings.noise * torch.rand(len(seen), 1, 1, 1, generator=noise)
            strength[::2] = 0
            seen = seen + strength * torch.randn(seen.shape, generator=noise)
            rows, total = attributes(numbers), torch.zeros(())
            for name, logits in module(seen).items():
                wanted = [values[name].index(row[name]) if name in row else -1 for row in rows]
                each = functional.cross_entropy(logits, torch.tensor(wanted), ignore_index=-1, reduction="sum")
                total = total + each / max(1, sum(code >= 0 for code in wanted))
            return total / len(values)

        optimise(module, loss, settings, seed, work=work, tell=tell, generators=(noise,))
    return load_classifier(AttributeClassifier(module, values, settings.width, settings.resolution).save(folder))

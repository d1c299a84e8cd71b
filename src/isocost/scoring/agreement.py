"""How well an image shows what was asked for: CLIP score and caption accuracy, similarity to a target (float64)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isocost.errors import DataError, SpecError, lookup
from isocost.scoring.statistics import check_features, row_lengths
from isocost.scoring.uncertainty import Estimate, mean_estimate


def clip_score(features: np.ndarray, text_features: np.ndarray) -> Estimate:
    """100 max(0, cos) of image features [N, D] and their captions' features [N, D], averaged (arXiv 2104.08718, without
    its factor 2.5). Raises `DataError` for bad features, other shapes, or a row of zeros."""
    return mean_estimate(100 * np.maximum(cosines(features, text_features, "text features"), 0), unit="100 cos")


def similarity(features: np.ndarray, target_features: np.ndarray) -> Estimate:
    """cos of image features [N, D] and those of each image's target [N, D], averaged, -1 to 1: with DINO's features the
    subject fidelity "DINO", with CLIP's "CLIP-I" (arXiv 2208.12242, section 4.2). Raises as `clip_score` does."""
    return mean_estimate(cosines(features, target_features, "target features"), unit="cos")


def cosines(features: np.ndarray, others: np.ndarray, what: str) -> np.ndarray:
    """cos of row n of the images' features and row n of the `others`, [N]."""
    image, other = check_features(features, "image features", rows=2), check_features(others, what, rows=2)
    if image.shape != other.shape:
        raise DataError(f"image features {list(image.shape)} and {what} {list(other.shape)} do not pair up.")
    unit, other_unit = image / row_lengths(image, "image features"), other / row_lengths(other, what)
    return (unit * other_unit).sum(axis=1)


Attributes = Mapping[str, Sequence[str | int]]  # attribute -> its K values, in the order of its logits
Wanted = Sequence[Mapping[str, str | int]]  # for each image the values that its prompt asks for


def caption_accuracy(logits: Mapping[str, np.ndarray], wanted: Wanted, attributes: Attributes) -> dict[str, Estimate]:
    """Share of the asked attributes that a classifier finds in the image: `accuracy`, and `accuracy/NAME` for each.

    logits: attribute -> [N, K]. `accuracy` is the mean over images of the mean over what each prompt asks. An attribute
    that a prompt does not name is not asked of its image; what the classifier does not judge is not scored; nor is an
    attribute asked of fewer than 2 images by itself. Influence values are in the order of the images, 0 where nothing
    was asked. Raises `DataError` for logits of a wrong shape or not finite and where nothing is asked at all,
    `SpecError` for a wanted value that the attribute does not have.
    """
    asked, right = _judge(logits, wanted, attributes)
    per_image = right.sum(axis=1) / np.maximum(asked.sum(axis=1), 1)
    estimates = {"accuracy": mean_estimate(per_image, asked.sum(axis=1) > 0, unit="accuracy")}
    for column, name in enumerate(attributes):
        if asked[:, column].sum() >= 2:
            estimates[f"accuracy/{name}"] = mean_estimate(right[:, column], asked[:, column], unit=f"accuracy/{name}")
    return estimates


def _judge(logits: Mapping[str, np.ndarray], wanted: Wanted, attributes: Attributes) -> tuple[np.ndarray, np.ndarray]:
    """Which attributes are asked of each image and which of those the classifier finds, bool [N, attributes]."""
    asked = np.zeros((len(wanted), len(attributes)), dtype=bool)
    right = np.zeros_like(asked)
    for column, (name, values) in enumerate(attributes.items()):
        scores = check_features(lookup(logits, name, "attribute of the logits"), f"logits of '{name}'")
        if scores.shape != (len(wanted), len(values)):
            raise DataError(f"logits of '{name}': expected {[len(wanted), len(values)]}, found {list(scores.shape)}.")
        targets = np.array([_place(prompt, name, values) for prompt in wanted])
        asked[:, column] = targets >= 0
        right[:, column] = targets == scores.argmax(axis=1)
    return asked, right


def _place(prompt: Mapping[str, str | int], name: str, values: Sequence[str | int]) -> int:
    """Index of the value that the prompt asks of attribute `name`, -1 where it asks none."""
    if name not in prompt:
        return -1
    if prompt[name] not in values:
        raise SpecError(f"a prompt asks for {name} '{prompt[name]}', which is none of {', '.join(map(str, values))}.")
    return list(values).index(prompt[name])


@dataclass(frozen=True)
class Chance:
    """Accuracy of images that ignore their prompts: all with the most frequent value asked for, or at random (1/K)."""

    majority: float
    uniform: float


def chance_levels(wanted: Wanted, attributes: Attributes) -> dict[str, Chance]:
    """What `caption_accuracy` would give for images that ignore their prompts, under the same names."""
    levels: dict[str, Chance] = {}
    majority: dict[str, str | int] = {}
    for name, values in attributes.items():
        counts = Counter(prompt[name] for prompt in wanted if name in prompt)
        if counts:
            (majority[name], most), *_ = counts.most_common(1)
            levels[f"accuracy/{name}"] = Chance(most / counts.total(), 1 / len(values))
    scored = [[name for name in majority if name in prompt] for prompt in wanted]
    pairs = [(prompt, names) for prompt, names in zip(wanted, scored, strict=True) if names]
    if not pairs:
        raise DataError("no prompt asks for any attribute that the classifier judges.")
    constant = np.mean([np.mean([prompt[name] == majority[name] for name in names]) for prompt, names in pairs])
    guess = np.mean([np.mean([1 / len(attributes[name]) for name in names]) for _, names in pairs])
    return {"accuracy": Chance(float(constant), float(guess)), **levels}

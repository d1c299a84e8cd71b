"""How well a tuned network draws its subject and has kept the subject's class: DreamBooth's measures (arXiv 2208.12242,
sections 4.2 and 4.3).

A measure is one value a subject; its estimate is the mean over subjects, and so is its error. Images of one subject
come from one tuning, and are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from isocost.scoring.agreement import Attributes, caption_accuracy, cosines
from isocost.scoring.kernels import kid
from isocost.scoring.statistics import Reference, check_features, row_lengths
from isocost.scoring.uncertainty import Estimate, mean_estimate


@dataclass(frozen=True, eq=False)
class Look:
    """One subject in an extractor's features. D dimensions, or an attribute classifier's logits side by side.

    images [N, D]: drawn of prompts with the subject; prompt_of [N]: of which. class_images [M, D]: drawn of the class's
    prompt by the tuned network, and class_before by the network that it was tuned from. pictures [P, D]: what it was
    shown. texts [N, D]: of each image's prompt with the noun alone. asked: what each prompt says an image must show.
    """

    images: np.ndarray
    prompt_of: np.ndarray
    class_images: np.ndarray
    class_before: np.ndarray
    pictures: np.ndarray
    texts: np.ndarray | None = None
    asked: Sequence[Mapping[str, str | int]] = field(default_factory=list)


def fidelity(look: Look) -> float:
    """Mean cosine of all pairs of a drawn image and a picture: with CLIP's features CLIP-I, with DINO's DINO."""
    return float((_unit(look.images) @ _unit(look.pictures).T).mean())


def prompt_fidelity(look: Look) -> float:
    """CLIP-T: 100 max(0, cos) of an image and its prompt, where the noun stands for the subject."""
    assert look.texts is not None
    return float(100 * np.maximum(cosines(look.images, look.texts, "text features"), 0).mean())


def prior_similarity(look: Look) -> float:
    """PRES: mean cosine of images of the class and pictures of the subject; high where it has taken the class over."""
    return float((_unit(look.class_images) @ _unit(look.pictures).T).mean())


def diversity(look: Look) -> float:
    """DIV: mean distance, 1 - cos, of two images of the subject of one prompt."""
    unit, found = _unit(look.images), []
    for prompt in np.unique(look.prompt_of):
        rows = unit[look.prompt_of == prompt]
        if len(rows) > 1:
            pairs = np.triu_indices(len(rows), 1)
            found.append(1 - (rows @ rows.T)[pairs].mean())
    return float(np.mean(found))


def drift(look: Look) -> float:
    """KID of the class's images after tuning and before: how far the network has moved from its own prior."""
    found = kid(look.class_images, Reference.of(look.class_before.astype(np.float32)))
    return found.corrected


OF_A_SUBJECT: dict[str, tuple[Callable[[Look], float], str, bool]] = {
    "similarity": (fidelity, "cos", True),
    "clip": (prompt_fidelity, "100 cos", True),
    "pres": (prior_similarity, "cos", False),
    "div": (diversity, "1 - cos", True),
    "kid": (drift, "squared MMD", False),
}
"""Metric -> its value on one subject, its unit, and whether higher is better."""


def over_subjects(metric: str, subjects: Sequence[Look]) -> Estimate:
    """A metric of `OF_A_SUBJECT`, averaged over two subjects or more."""
    function, unit, higher = OF_A_SUBJECT[metric]
    return mean_estimate(np.array([function(look) for look in subjects]), unit=unit, higher_is_better=higher)


def pres(subjects: Sequence[Look]) -> Estimate:
    """`prior_similarity`, over subjects; lower is better."""
    return over_subjects("pres", subjects)


def div(subjects: Sequence[Look]) -> Estimate:
    """`diversity`, over subjects."""
    return over_subjects("div", subjects)


def accuracy(
    subjects: Sequence[Look], split: Callable[[np.ndarray], Mapping[str, np.ndarray]], attributes: Attributes
) -> Estimate:
    """Share of what prompts ask for and a classifier finds, over subjects. split: logits [N, D] by attribute."""
    shares = [caption_accuracy(split(look.images), look.asked, attributes)["accuracy"].value for look in subjects]
    return mean_estimate(np.array(shares), unit="accuracy")


def _unit(features: np.ndarray) -> np.ndarray:
    features = check_features(features, "image features")
    return features / row_lengths(features, "image features")

"""Metrics of generated images by name: features in, an `Estimate` with its error out.

A new metric is one function, beside its kin in this package, and one line of `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from isocost.errors import SpecError, lookup
from isocost.scoring.agreement import caption_accuracy, clip_score, similarity
from isocost.scoring.frechet import frechet, frechet_infinity
from isocost.scoring.inception_score import inception_score
from isocost.scoring.kernels import cmmd, cmmd_biased, kid
from isocost.scoring.manifold import coverage, density, precision, recall
from isocost.scoring.paired import paired_mean
from isocost.scoring.subjects import div, pres
from isocost.scoring.uncertainty import Estimate
from isocost.scoring.ways import attribute_coherence, coherence, detour, largest_jump, path_length


@dataclass(frozen=True)
class Metric:
    """`function` takes the inputs that `needs` names, as keywords, and returns one Estimate or several by name.

    Inputs, row n for image n: `features` [N, D] of the images, `text_features` [N, D] of their captions and
    `target_features` [N, D] of their targets by the same extractor, `reference`, an Inception network's `class_logits`
    [N, K], a classifier's `logits` and `attributes`, what each prompt `wanted`, and `paired` [N]: each image's value
    beside its target's. Of images between two captions: their `places`, `end_features` [N, 2, D] of both captions, and
    what either end must show, `ends_wanted`. Of DreamBooth: its `subjects`.
    `unit` is that of the estimate; `description` says in one line what is measured. `names_extractor`: its score is
    printed with the extractor, as in `fd[scenes-clip-score]`.
    """

    function: Callable[..., Estimate | dict[str, Estimate]]
    needs: tuple[str, ...]
    unit: str
    description: str
    higher_is_better: bool = True
    names_extractor: bool = True


def _of_pairs(unit: str, description: str, higher_is_better: bool = True) -> Metric:
    """The mean of a comparison of each image with its target; its name says all, so no extractor is named."""
    function = partial(paired_mean, unit=unit, higher_is_better=higher_is_better)
    return Metric(function, ("paired",), unit, description, higher_is_better, names_extractor=False)


SETS = ("features", "reference")
PATHS = ("features", "places")
OF_STUDIES = {
    "places": "images between two captions, which a study with evaluation.between has",
    "subjects": "subjects, which a study of DreamBooth has",
}
"""Inputs that no folder of images has, and what has them."""

METRICS: dict[str, Metric] = {
    "fd": Metric(frechet, SETS, "Frechet distance", "Frechet distance (FID, of Inception's features)", False),
    "fd-infinity": Metric(frechet_infinity, SETS, "Frechet distance", "fd, extrapolated to endless images", False),
    "kid": Metric(kid, SETS, "squared MMD", "kernel distance: cubic, unbiased, all pairs", False),
    "cmmd": Metric(cmmd, SETS, "1000 x squared MMD", "kernel distance: Gaussian, of CLIP features, unbiased", False),
    "cmmd-biased": Metric(cmmd_biased, SETS, "1000 x squared MMD", "cmmd as published: grows for few images", False),
    "precision": Metric(precision, SETS, "share of images", "images among the references (k = 3)"),
    "recall": Metric(recall, SETS, "share of references", "references among the images (k = 3)"),
    "density": Metric(density, SETS, "balls over k", "how densely images lie among the references (k = 5)"),
    "coverage": Metric(coverage, SETS, "share of references covered", "references with an image nearby (k = 5)"),
    "is": Metric(inception_score, ("class_logits",), "inception score", "how sure and how varied the classes are"),
    "clip": Metric(clip_score, ("features", "text_features"), "100 cos", "CLIP score: an image and its caption"),
    "similarity": Metric(similarity, ("features", "target_features"), "cos", "an image and its target: DINO, CLIP-I"),
    "accuracy": Metric(
        caption_accuracy,
        ("logits", "wanted", "attributes"),
        "accuracy",
        "what captions ask for and a classifier finds",
        names_extractor=False,
    ),
    "coherence": Metric(
        coherence,
        ("features", "end_features", "places"),
        "100 cos",
        "between two captions: the better of both CLIP scores",
    ),
    "attribute-coherence": Metric(
        attribute_coherence,
        ("logits", "attributes", "places", "ends_wanted"),
        "share of attributes",
        "between two captions: attributes that belong to either",
        names_extractor=False,
    ),
    "path-length": Metric(path_length, PATHS, "path length", "between two captions: image to image, summed", False),
    "detour": Metric(detour, PATHS, "detour", "between two captions: path length over the straight way", False),
    "largest-jump": Metric(largest_jump, PATHS, "largest jump", "between two captions: the largest step", False),
    "pres": Metric(pres, ("subjects",), "cos", "DreamBooth: the class beside pictures of the subject", False),
    "div": Metric(div, ("subjects",), "1 - cos", "DreamBooth: how unlike images of one prompt are"),
    "psnr": _of_pairs("dB", "peak signal-to-noise ratio, RGB"),
    "psnr-y": _of_pairs("dB of luma", "peak signal-to-noise ratio, luma"),
    "ssim": _of_pairs("SSIM", "structural similarity, RGB"),
    "ssim-y": _of_pairs("SSIM of luma", "structural similarity, luma"),
    "lpips-alex": _of_pairs("LPIPS (alex)", "perceptual distance by AlexNet", higher_is_better=False),
    "lpips-vgg": _of_pairs("LPIPS (vgg)", "perceptual distance by VGG16", higher_is_better=False),
    "lite0-distance": _of_pairs("distance of lite0's stages", "EfficientNet-Lite0's stages, no learned weights", False),
}


def label(metric: str, extractor: str) -> str:
    """The name under which a score is printed: `fd[scenes-clip-score]`, `accuracy`, or `accuracy/colour`."""
    family = lookup(METRICS, metric.partition("/")[0], "metric")
    return f"{metric}[{extractor}]" if family.names_extractor else metric


def compute(metric: str, **inputs: Any) -> dict[str, Estimate]:
    """Estimates of one of `METRICS` by name, from whatever inputs are at hand; those it does not need are ignored.

    Raises `SpecError` for an unknown metric or a missing input.
    """
    entry = lookup(METRICS, metric, "metric")
    missing = [name for name in entry.needs if inputs.get(name) is None]
    if missing:
        raise SpecError(f"metric '{metric}' needs {', '.join(missing)}.")
    result = entry.function(**{name: inputs[name] for name in entry.needs})
    return result if isinstance(result, dict) else {metric: result}


def needs(metrics: Iterable[str]) -> set[str]:
    """All inputs that these metrics need."""
    return {name for metric in metrics for name in lookup(METRICS, metric, "metric").needs}

"""Metrics of generated images: features in, an `Estimate` with its error out. float64 throughout.

A new metric is one function here and one line of `METRICS`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isocost.errors import DataError, SpecError, lookup
from isocost.scoring.statistics import (
    Moments,
    Reference,
    blocks,
    check_features,
    cross_kernel_means,
    moments,
    other_kernel_means,
)
from isocost.scoring.uncertainty import Estimate, centred, mean_estimate, standard_error

EPS = float(np.finfo(np.float64).eps)
BLURRED = 1e-4  # roots of eigenvalues below this share of the largest have lost digits (to EPS / BLURRED^2 of it)
VALID_PER_DIM = 8  # below this many images a dimension the Frechet distance's error is not trusted
BIAS_PER_DIM = 4  # and below this many its bias cannot be estimated
EXACT_REFERENCE = 10  # a reference this many times larger than the generated set counts as exact

# --- Frechet distance ---


def frechet_distance(generated: Moments, reference: Reference) -> float:
    """|mu_g - mu_r|^2 + tr S_g + tr S_r - 2 tr (S_r S_g)^(1/2), from moments alone (arXiv 1706.08500, eq. 6).

    With R R' = S_r the trace of the root is the sum of the roots of the eigenvalues of R' S_g R: symmetric, and R is
    computed once a reference. `frechet` has the features and is more accurate where covariances are near singular.
    """
    _check_dims(generated.dims, reference)
    factor = reference.factor
    squares = np.linalg.eigvalsh(factor.T @ generated.covariance @ factor)
    return _distance(generated, reference, np.sqrt(np.maximum(squares, 0)))


def frechet(features: np.ndarray, reference: Reference) -> Estimate:
    """Frechet distance of features [N, D] to a reference: the plug-in, its bias, standard error and influence values.

    With C the centred features and R' S_g R = V diag(s^2) V', U = C R V has the influence values
    2 (mu_g - mu_r).c + |c|^2 - sum_i u_i^2 / s_i, and the bias is the second-order term of the same expansion. A
    reference of fewer than 10 N images counts as a sample: its own variance enters `stderr` and its own bias `bias`.

    `value` is the plug-in, which is too high by about `bias`; reports rank and compare by `corrected`. `bias` is None
    where either sample has fewer than 4 D images; `valid` is False for N < 8 D. Influence vanishes as the distance goes
    to 0, so near 0 the interval is too narrow. Raises `DataError` for bad features, other dims than the reference's, or
    a small reference without features.
    """
    features = check_features(features, rows=2)
    generated = moments(features)
    _check_dims(generated.dims, reference)
    s, basis = _cross_spectrum(features, generated, reference)
    value = _distance(generated, reference, s)

    kept = s > math.sqrt(EPS) * s.max(initial=0.0)
    s, basis = s[kept], basis[:, kept]
    shift = generated.mean - reference.moments.mean
    influence, bias = _expand(features, generated, shift, basis, s)
    variance = standard_error(influence) ** 2
    smallest_sample = generated.n
    if reference.n < EXACT_REFERENCE * generated.n:
        mirrored = generated.covariance @ (basis / s)  # G with G G' = S_g and G' S_r G = diag(s^2)
        other, other_bias = _expand(reference.require_features(), reference.moments, -shift, mirrored, s)
        variance += standard_error(other) ** 2
        bias += other_bias
        smallest_sample = min(smallest_sample, reference.n)
    return Estimate(
        value=value,
        stderr=math.sqrt(variance),
        bias=bias if smallest_sample >= BIAS_PER_DIM * generated.dims else None,
        n=generated.n,
        influence=influence,
        higher_is_better=False,
        unit="Frechet distance",
        valid=generated.n >= VALID_PER_DIM * generated.dims,
    )


def _distance(generated: Moments, reference: Reference, s: np.ndarray) -> float:
    shift = generated.mean - reference.moments.mean
    traces = np.trace(generated.covariance) + np.trace(reference.moments.covariance)
    return float(shift @ shift + traces - 2 * s.sum())


def _cross_spectrum(features: np.ndarray, generated: Moments, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """s [k] and R V [D, k], where R' S_g R = V diag(s^2) V'.

    For N < D, s are the singular values of the centred rows times R, and their sum is the nuclear norm. Else the roots
    of eigenvalues, of which the small ones are blurred: they are found again from the rows, in their own subspace.
    """
    factor = reference.factor
    if generated.n < generated.dims:
        rows = (features.astype(np.float64) - generated.mean) @ factor / math.sqrt(generated.n - 1)
        _, s, right = np.linalg.svd(rows, full_matrices=False)
        return s, factor @ right.T
    s, basis = _diagonalise(factor.T @ generated.covariance @ factor, factor)
    small = s < BLURRED * s.max(initial=0.0)
    if small.any():
        gram = np.zeros((small.sum(), small.sum()))
        for _, u in _projected(features, generated, basis[:, small]):
            gram += u.T @ u
        s[small], basis[:, small] = _diagonalise(gram / (generated.n - 1), basis[:, small])
    return s, basis


def _diagonalise(squares: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Roots s [k] of the eigenvalues of `squares` = V diag(s^2) V', and basis V [D, k]."""
    values, vectors = np.linalg.eigh(squares)
    return np.sqrt(np.maximum(values, 0)), basis @ vectors


def _projected(features: np.ndarray, sample: Moments, basis: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of centred rows c [B, D] and of u = c basis [B, k], in order."""
    for block in blocks([features]):
        c = block - sample.mean
        yield c, c @ basis


def _expand(
    features: np.ndarray, sample: Moments, shift: np.ndarray, basis: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, float]:
    """Influence values [N] of one of the two samples and the bias that its finite size gives the distance.

    `shift` [D]: this sample's mean less the other's. `basis` [D, k]: U = C basis has covariance diag(s^2). The bias is
    tr S / N + 1/2 sum_ij Var(h_ij) / (s_i s_j (s_i + s_j)), where Var(h) = ((U^2)' (U^2) / N - diag(s^4)) / N.
    """
    influence = []
    fourth = np.zeros((len(s), len(s)))
    for c, u in _projected(features, sample, basis):
        u_squared = u * u
        influence.append(2 * c @ shift + (c * c).sum(axis=1) - u_squared @ (1 / s))
        fourth += u_squared.T @ u_squared
    variance = (fourth / sample.n - np.diag(s**4)) / sample.n
    curvature = 1 / (np.outer(s, s) * np.add.outer(s, s))
    bias = np.trace(sample.covariance) / sample.n + 0.5 * np.sum(variance * curvature)
    return centred(np.concatenate(influence)), float(bias)


def _check_dims(dims: int, reference: Reference) -> None:
    if dims != reference.dims:
        raise DataError(f"features have {dims} dims, the reference has {reference.dims}: use one extractor for both.")


# --- kernel distance ---


def kid(features: np.ndarray, reference: Reference) -> Estimate:
    """Kernel distance (arXiv 1801.01401): the unbiased squared MMD with the kernel (x.y / D + 1)^3, of features [N, D].

    All pairs count, in blocks, instead of the usual random subsets, whose spread is no standard error. Influence is the
    Hajek projection 2 (mean kernel to the other generated images - mean kernel to the references), centred. `stderr`
    adds the same projection over the M references; where both distributions agree it is too large by up to sqrt(2).
    """
    features = check_features(features, rows=2)
    _check_dims(features.shape[1], reference)
    to_generated = other_kernel_means(features)
    to_references, from_references = cross_kernel_means(features, reference.require_features())
    value = to_generated.mean() + reference.kernel_means.mean() - 2 * to_references.mean()
    influence = centred(2 * (to_generated - to_references))
    references_share = standard_error(2 * (reference.kernel_means - from_references))
    return Estimate(
        value=float(value),
        stderr=math.hypot(standard_error(influence), references_share),
        bias=None,
        n=len(features),
        influence=influence,
        higher_is_better=False,
        unit="squared MMD",
    )


# --- agreement with the prompt ---


def clip_score(features: np.ndarray, text_features: np.ndarray) -> Estimate:
    """100 max(0, cos) of image features [N, D] and their captions' features [N, D], averaged (arXiv 2104.08718, without
    its factor 2.5). Raises `DataError` for bad features, other shapes, or a row of zeros."""
    image = _unit_rows(check_features(features, "image features", rows=2), "image features")
    text = _unit_rows(check_features(text_features, "text features", rows=2), "text features")
    if image.shape != text.shape:
        raise DataError(f"image features {list(image.shape)} and text features {list(text.shape)} do not pair up.")
    return mean_estimate(100 * np.maximum((image * text).sum(axis=1), 0), unit="100 cos")


def _unit_rows(features: np.ndarray, what: str) -> np.ndarray:
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise DataError(f"{what}: row {int(np.argmin(norms))} is all zeros and has no direction.")
    return rows / norms


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


# --- by name ---


@dataclass(frozen=True)
class Metric:
    """`function` takes the inputs that `needs` names, as keywords, and returns one Estimate or several by name.

    Inputs, row n for image n: `features` [N, D] of the images, `text_features` [N, D] of their captions by the same
    extractor, `reference`, a classifier's `logits` and `attributes`, and what each prompt `wanted`.
    `names_extractor`: its score is printed with the extractor, as in `fd[scenes-clip-score]`.
    """

    function: Callable[..., Estimate | dict[str, Estimate]]
    needs: tuple[str, ...]
    higher_is_better: bool
    names_extractor: bool = True


METRICS: dict[str, Metric] = {
    "fd": Metric(frechet, ("features", "reference"), higher_is_better=False),
    "kid": Metric(kid, ("features", "reference"), higher_is_better=False),
    "clip": Metric(clip_score, ("features", "text_features"), higher_is_better=True),
    "accuracy": Metric(
        caption_accuracy, ("logits", "wanted", "attributes"), higher_is_better=True, names_extractor=False
    ),
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

"""The inception score of images from a classifier's logits, with its bias and standard error (float64)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isocost.errors import SpecError
from isocost.scoring.statistics import blocks, check_features
from isocost.scoring.uncertainty import Estimate, centred, standard_error

BIAS_PER_CLASS = 4  # below this many images a class in effect the bias cannot be estimated
VALID_PER_CLASS = 16  # and below this many the score is not trusted
TINY = float(np.finfo(np.float64).tiny)


def inception_score(class_logits: np.ndarray, splits: int = 1) -> Estimate:
    """exp(mean_n KL(p(y|x_n) || p(y))), 1 to K, of the classifier's logits [N, K] (arXiv 1606.03498, section 4).

    log IS = mean KL_n has the influence values KL_n - log IS. It is too low by K' / (2 N), as p(y) is the mean of the
    same N images, with K' = sum_k Var(p_k) / p_k the classes in effect (at most K - 1); the exponential adds
    Var(KL) / (2 N). `bias` is what both make of IS: None for N < 4 K', and `valid` is False for N < 16 K'.

    `splits`: the mean over so many runs of N / splits images in their order (the published code: 10). Such a score is
    lower, so the unit names the splits; N in these rules is that of a split. The spread over splits is no error of
    their mean and is not used. Raises `DataError` for bad logits or a split of fewer than 2 images, `SpecError` for
    splits < 1.
    """
    if splits < 1:
        raise SpecError(f"inception score: {splits} splits; use 1 (all images at once) or 10 (as published).")
    logits = check_features(class_logits, "class logits", rows=2 * splits)
    n = len(logits)
    parts = [_expand(logits[split * n // splits : (split + 1) * n // splits]) for split in range(splits)]
    influence = np.concatenate([part.influence * (n / (splits * len(part.influence))) for part in parts])
    images_per_class = min(part.images_per_class for part in parts)
    return Estimate(
        value=float(np.mean([part.score for part in parts])),
        stderr=standard_error(influence),
        bias=float(np.mean([part.bias for part in parts])) if images_per_class >= BIAS_PER_CLASS else None,
        n=n,
        influence=influence,
        higher_is_better=True,
        unit="inception score" if splits == 1 else f"inception score, mean of {splits} splits",
        valid=images_per_class >= VALID_PER_CLASS,
    )


@dataclass(frozen=True)
class _Expansion:
    """A split's score, its second-order bias, its influence values [n] and n / K'."""

    score: float
    bias: float
    influence: np.ndarray
    images_per_class: float


def _expand(logits: np.ndarray) -> _Expansion:
    n = len(logits)
    mean = sum(p.sum(axis=0) for p, _ in _probabilities(logits)) / n
    log_mean = np.log(np.maximum(mean, TINY))
    divergences, squares = [], np.zeros_like(mean)
    for p, log_p in _probabilities(logits):
        divergences.append((p * (log_p - log_mean)).sum(axis=1))
        squares += ((p - mean) ** 2).sum(axis=0)
    divergence = np.concatenate(divergences)
    classes = float(np.sum(squares / n / np.maximum(mean, TINY)))
    score = math.exp(divergence.mean())
    bias = score * (1 - math.exp((classes - divergence.var(ddof=1)) / (2 * n)))
    return _Expansion(score, bias, score * centred(divergence), n / classes if classes else math.inf)


def _probabilities(logits: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of p(y|x) and of its logarithm, [B, K] each, in order."""
    for block in blocks([logits]):
        shifted = block - block.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        yield np.exp(log_p), log_p

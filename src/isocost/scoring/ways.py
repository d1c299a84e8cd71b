"""Images on the way between two captions: how coherent each is, and how smooth the way (arXiv 2404.01367, Fig. 24).

Images of one way share noise and captions, so they are not independent: all errors are over ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isocost.data.prompts import OnTheWay
from isocost.errors import DataError
from isocost.scoring.agreement import Attributes, Wanted, cosines
from isocost.scoring.statistics import check_features, row_lengths
from isocost.scoring.uncertainty import Estimate, mean_estimate

Places = Sequence[OnTheWay]


def coherence(features: np.ndarray, end_features: np.ndarray, places: Places) -> dict[str, Estimate]:
    """How well an image shows one of the two captions that it lies between: the better of its CLIP scores, 0 to 100.

    features: of images [N, D]. end_features: of both captions of each, [N, 2, D]. `coherence` is the mean over ways of
    the mean over their images strictly between the ends; `coherence/0.5` is of the images at that weight.
    """
    scores = [cosines(features, end_features[:, end], "text features") for end in (0, 1)]
    return _by_weight("coherence", 100 * np.maximum(np.maximum(*scores), 0), places, "100 cos")


def attribute_coherence(
    logits: Mapping[str, np.ndarray], attributes: Attributes, places: Places, ends_wanted: tuple[Wanted, Wanted]
) -> dict[str, Estimate]:
    """Share of an image's attributes that belong to one of its ends, 0 to 1, as a classifier finds them.

    Judged are the attributes that both captions name with different values; an image whose captions share them all has
    none, and does not count. ends_wanted: what images of the first ends must show [N], and of the second. Names as in
    `coherence`.
    """
    share, judged = np.zeros(len(places)), np.zeros(len(places))
    for name, values in attributes.items():
        found = np.array(values, dtype=object)[check_features(logits[name], f"logits of '{name}'").argmax(axis=1)]
        for row, (first, second) in enumerate(zip(*ends_wanted, strict=True)):
            if name in first and name in second and first[name] != second[name]:
                judged[row] += 1
                share[row] += found[row] in (first[name], second[name])
    return _by_weight("attribute-coherence", share / np.maximum(judged, 1), places, "share of attributes", judged > 0)


def path_length(features: np.ndarray, places: Places) -> Estimate:
    """Mean over ways of the distances from each image to the next, summed, in features [N, D] scaled to length 1.

    It is the perceptual path length of StyleGAN (arXiv 1812.04948, section 4.1) over finite steps: a sum of distances,
    not of squares over the step, as that would grow without end where images jump.
    """
    return mean_estimate(_steps(features, places).sum(axis=1), unit="path length", higher_is_better=False)


def detour(features: np.ndarray, places: Places) -> Estimate:
    """Path lengths over the straight distances between the ends, both summed over ways: 1 is a straight way.

    So a model whose ends lie further apart is not called less smooth for it.
    """
    order, unit = _in_order(places), _unit(features)
    straight = np.linalg.norm(unit[order[:, 0]] - unit[order[:, -1]], axis=1)
    if not straight.sum() > 0:
        raise DataError("the two ends of every way have equal features: there is no way between them.")
    lengths = _steps(features, places).sum(axis=1)
    return mean_estimate(lengths / np.maximum(straight, 1e-12), straight, unit="detour", higher_is_better=False)


def largest_jump(features: np.ndarray, places: Places) -> Estimate:
    """Mean over ways of the largest distance from one image to the next (in features scaled to length 1)."""
    return mean_estimate(_steps(features, places).max(axis=1), unit="largest jump", higher_is_better=False)


def _steps(features: np.ndarray, places: Places) -> np.ndarray:
    """Distances between neighbours on each way, [ways, images - 1]."""
    along = _unit(features)[_in_order(places)]
    return np.linalg.norm(np.diff(along, axis=1), axis=2)


def _unit(features: np.ndarray) -> np.ndarray:
    features = check_features(features, "image features", rows=2)
    return features / row_lengths(features, "image features")


def _in_order(places: Places) -> np.ndarray:
    """Rows of each way's images from its first end to its second, int64 [ways, images]."""
    order = sorted(range(len(places)), key=lambda row: (places[row].number, -places[row].weight))
    numbers = [place.number for place in places]
    images = len(places) // len(set(numbers))
    rows = np.array(order, dtype=np.int64)
    if images * len(set(numbers)) != len(places) or images < 2:
        raise DataError("ways of different numbers of images, or of one: give all images of each way.")
    return rows.reshape(-1, images)


def _by_weight(
    name: str, values: np.ndarray, places: Places, unit: str, counts: np.ndarray | None = None
) -> dict[str, Estimate]:
    """Means over ways: at each weight, and strictly between the ends. `counts`: which images are judged [N]."""
    order = _in_order(places)
    weights = [places[row].weight for row in order[0]]
    values, counted = values[order], (np.ones_like(values) if counts is None else counts.astype(float))[order]
    inside = [column for column, weight in enumerate(weights) if 0 < weight < 1]
    of_way = (values * counted)[:, inside].sum(axis=1) / np.maximum(counted[:, inside].sum(axis=1), 1)
    found = {name: mean_estimate(of_way, np.asarray(counted[:, inside].any(axis=1)), unit=unit)}
    for column in np.flatnonzero(counted.sum(axis=0) >= 2):
        weight = weights[column]
        found[f"{name}/{weight:g}"] = mean_estimate(values[:, column], counted[:, column], unit=f"{name}/{weight:g}")
    return found

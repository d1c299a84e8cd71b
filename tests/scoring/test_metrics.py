from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tests.scoring.synthetic import ATTRIBUTES, LOGITS, WANTED, spread_features

from isocost.data.prompts import OnTheWay, Prompt
from isocost.errors import DataError, SpecError
from isocost.scoring import metrics
from isocost.scoring.frechet import frechet
from isocost.scoring.metrics import METRICS, compute, label
from isocost.scoring.paired import PAIRED
from isocost.scoring.statistics import Reference
from isocost.scoring.subjects import Look
from isocost.scoring.uncertainty import total_error

IMAGES, REFERENCE = spread_features(50, np.ones(4)), Reference.of(spread_features(450, np.ones(4), seed=1))
INPUTS = dict(
    features=IMAGES,
    reference=REFERENCE,
    text_features=IMAGES,
    target_features=spread_features(50, np.ones(4), seed=2),
    class_logits=IMAGES,
    paired=IMAGES[:, 0],
    logits=LOGITS,
    wanted=WANTED,
    attributes=ATTRIBUTES,
)
END = Prompt("id", "text", {})
WAYS = dict(
    places=[OnTheWay(way, END, END, weight, "linear") for way in range(10) for weight in (1.0, 0.7, 0.5, 0.2, 0.0)],
    end_features=np.stack([IMAGES[::-1], IMAGES], axis=1),
    ends_wanted=([{"colour": "red"}] * 50, [{"colour": "green"}] * 50),
    logits={name: np.tile(values, (10, 1)) for name, values in LOGITS.items()},
)
SUBJECTS = dict(
    subjects=[Look(part, np.arange(10) % 2, part, part, part + 1) for part in np.split(IMAGES.astype(np.float64), 5)]
)
OF_SETS = [name for name, metric in METRICS.items() if "reference" in metric.needs]


@pytest.mark.parametrize("name", OF_SETS)
def test_bad_features_are_refused(name):
    broken = IMAGES.copy()
    broken[[2, 5], 1] = np.nan
    with pytest.raises(DataError, match=r"2 image rows \(2, 5\)"):
        compute(name, features=broken, reference=REFERENCE)
    with pytest.raises(DataError, match="5 dims, the reference has 4"):
        compute(name, features=spread_features(20, np.ones(5)), reference=REFERENCE)
    with pytest.raises(DataError, match="at least"):
        compute(name, features=np.ones((1, 4)), reference=REFERENCE)


@pytest.mark.parametrize("name", METRICS)
def test_an_estimate_is_what_its_metric_says_with_influence_that_gives_its_error(name):
    metric = METRICS[name]
    inputs = INPUTS | (WAYS if "places" in metric.needs else {}) | SUBJECTS
    estimates = compute(name, **inputs)
    assert name in estimates
    for part, estimate in estimates.items():
        assert estimate.higher_is_better == metric.higher_is_better
        assert estimate.unit == (part if "/" in part else metric.unit)
        assert isinstance(estimate.value, float) and isinstance(estimate.stderr, float)
        assert len(estimate.influence) == estimate.n and estimate.influence.dtype == np.float64
        assert abs(estimate.influence.sum()) < 1e-9
        assert estimate.stderr == pytest.approx(total_error(estimate.influence, estimate.reference_influence))
        assert (estimate.reference_influence is not None) == (name in OF_SETS)
    again = compute(name, **inputs)[name]
    assert (again.value, again.stderr, again.bias) == (
        estimates[name].value,
        estimates[name].stderr,
        estimates[name].bias,
    )


@pytest.mark.parametrize("name", OF_SETS)
def test_how_features_are_stored_does_not_count(name):
    """fp16 as kept by chunk, C or Fortran order, a view: equal bits."""
    stored = IMAGES.astype(np.float16)
    plain = compute(name, features=stored.astype(np.float64), reference=REFERENCE)[name]
    for same in (stored, np.asfortranarray(stored), np.repeat(stored, 2, axis=0)[::2]):
        found = compute(name, features=same, reference=REFERENCE)[name]
        assert found.value == plain.value and np.array_equal(found.influence, plain.influence)


def test_descriptions_are_one_line_each():
    for metric in METRICS.values():
        assert 0 < len(metric.description) <= 60 and "\n" not in metric.description
    assert set(PAIRED) < set(METRICS)


def test_compute_takes_what_a_metric_needs():
    assert compute("fd", **INPUTS)["fd"].value == frechet(IMAGES, REFERENCE).value
    assert set(compute("accuracy", **INPUTS)) == {"accuracy", "accuracy/colour", "accuracy/count"}
    assert metrics.needs(["fd", "clip"]) == {"features", "reference", "text_features"}


def test_unknown_metrics_and_missing_inputs_are_refused():
    with pytest.raises(SpecError, match=r"unknown metric 'fid'\. Did you mean 'fd'"):
        compute("fid")
    with pytest.raises(SpecError, match="'kid' needs reference"):
        compute("kid", features=np.ones((3, 2)))


def test_metrics_need_no_torch():
    code = "import sys, isocost.scoring.metrics, isocost.scoring.extractors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_labels_name_the_extractor():
    assert label("fd", "scenes-clip-score-32") == "fd[scenes-clip-score-32]"
    assert label("accuracy", "scenes-attributes") == "accuracy"
    assert label("lpips-vgg", "lpips-vgg") == "lpips-vgg"

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tests.scoring.synthetic import ATTRIBUTES, LOGITS, WANTED, spread_features

from isocost.errors import DataError, SpecError
from isocost.scoring import metrics
from isocost.scoring.frechet import frechet
from isocost.scoring.kernels import kid
from isocost.scoring.metrics import METRICS, compute, label
from isocost.scoring.statistics import Reference


@pytest.mark.parametrize("metric", [frechet, kid])
def test_bad_features_are_refused(metric):
    reference = Reference.of(spread_features(50, np.ones(4)))
    broken = spread_features(20, np.ones(4))
    broken[[2, 5], 1] = np.nan
    with pytest.raises(DataError, match=r"2 image rows \(2, 5\)"):
        metric(broken, reference)
    with pytest.raises(DataError, match="5 dims, the reference has 4"):
        metric(spread_features(20, np.ones(5)), reference)
    with pytest.raises(DataError, match="at least 2"):
        metric(np.ones((1, 4)), reference)


def test_compute_takes_what_a_metric_needs():
    x, reference = spread_features(50, np.ones(4)), Reference.of(spread_features(500, np.ones(4), seed=1))
    inputs = dict(features=x, reference=reference, text_features=x, logits=LOGITS, wanted=WANTED, attributes=ATTRIBUTES)
    for name, metric in METRICS.items():
        for estimate in compute(name, **inputs).values():
            assert estimate.higher_is_better == metric.higher_is_better
    assert compute("fd", **inputs)["fd"].value == frechet(x, reference).value
    assert set(compute("accuracy", **inputs)) == {"accuracy", "accuracy/colour", "accuracy/count"}
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

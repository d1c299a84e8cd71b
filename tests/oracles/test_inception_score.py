from __future__ import annotations

import numpy as np
import pytest
import torch

from isocost.scoring.inception_score import inception_score


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((600, 20)) * 2


@pytest.mark.parametrize("splits", [1, 10])
def test_the_score_is_torch_fidelitys(library, logits, splits):
    module = library("torch_fidelity.metric_isc")
    found = module.isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=False)
    assert inception_score(logits, splits).value == pytest.approx(found[module.KEY_METRIC_ISC_MEAN], rel=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_score_is_torchmetrics(library, logits):
    """Its own shuffle does not move the score of one split."""
    metric = library("torchmetrics.image.inception").InceptionScore(torch.nn.Identity(), splits=1)
    metric.update(torch.from_numpy(logits))
    assert inception_score(logits).value == pytest.approx(float(metric.compute()[0]), rel=1e-6)

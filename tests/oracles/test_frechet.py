from __future__ import annotations

import numpy as np
import pytest
import torch

from isocost.scoring.frechet import frechet, frechet_distance, frechet_value
from isocost.scoring.statistics import Reference, moments

REL = 1e-8


def theirs(name: str, library, x: np.ndarray, y: np.ndarray) -> float:
    """The distance from float64 features, as each library takes it from their moments."""
    (mean_x, cov_x), (mean_y, cov_y) = ((rows.mean(axis=0), np.cov(rows, rowvar=False)) for rows in (x, y))
    if name == "pytorch-fid":
        return library("pytorch_fid.fid_score").calculate_frechet_distance(mean_x, cov_x, mean_y, cov_y)
    if name == "clean-fid":
        return library("cleanfid.fid").frechet_distance(mean_x, cov_x, mean_y, cov_y)
    if name == "torchmetrics":
        module = library("torchmetrics.image.fid")
        return float(module._compute_fid(*map(torch.from_numpy, (mean_x, cov_x, mean_y, cov_y))))
    module = library("torch_fidelity.metric_fid")
    kept = [module.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (x, y)]
    return module.fid_statistics_to_metric(*kept, False)[module.KEY_METRIC_FID]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["pytorch-fid", "clean-fid", "torchmetrics", "torch-fidelity"])
def test_the_distance_is_that_of_the_libraries(name, library, cells):
    x, y = cells
    expected, reference = theirs(name, library, x, y), Reference.of(y)
    assert frechet(x, reference).value == pytest.approx(expected, rel=REL)
    assert frechet_value(x, reference) == pytest.approx(expected, rel=REL)
    assert frechet_distance(moments(x), reference) == pytest.approx(expected, rel=REL)


@pytest.mark.parametrize("name", ["torchmetrics", "torch-fidelity"])
def test_few_images_have_the_distance_that_their_eigenvalues_give(name, library, cells):
    """Fewer images than dimensions: the libraries' roots of eigenvalues that should be 0 limit the comparison."""
    x, y = cells[0][:40], cells[1]
    expected = theirs(name, library, x, y)
    assert frechet(x, Reference.of(y)).value == pytest.approx(expected, rel=1e-6)
    assert frechet_value(x, Reference.of(y)) == pytest.approx(expected, rel=1e-6)


def test_the_metric_that_accumulates_agrees_in_single_precision(library, cells):
    class Features(torch.nn.Identity):
        num_features = 48

    x, y = (rows.astype(np.float32) for rows in cells)
    metric = library("torchmetrics.image.fid").FrechetInceptionDistance(Features())
    for start in range(0, 500, 100):
        metric.update(torch.from_numpy(y[start : start + 100]), real=True)
    metric.update(torch.from_numpy(x), real=False)
    assert frechet_value(x, Reference.of(y)) == pytest.approx(float(metric.compute()), rel=1e-5)

from __future__ import annotations

import numpy as np
import pytest
import torch

from isocost.scoring.kernels import kid
from isocost.scoring.statistics import Reference

REL = 1e-10


def test_kid_is_torchmetrics_on_one_subset_of_all(library, cells):
    x, y = cells[0][:500], cells[1]
    expected = library("torchmetrics.image.kid").poly_mmd(torch.from_numpy(y), torch.from_numpy(x))
    assert kid(x, Reference.of(y)).value == pytest.approx(float(expected), rel=REL)


def test_kid_is_torch_fidelitys_on_one_subset_of_all(library, cells):
    x, y = cells[0][:500], cells[1]
    expected = library("torch_fidelity.metric_kid").kernel_mmd(x, y)
    assert kid(x, Reference.of(y)).value == pytest.approx(float(expected), rel=REL)


def test_kid_is_clean_fids_mean_over_subsets_of_all(library, cells):
    """Every subset holds all rows, so that all are the same; theirs come in another order."""
    x, y = cells[0][:500], cells[1]
    expected = library("cleanfid.fid").kernel_distance(y, x, num_subsets=2, max_subset_size=500)
    assert kid(x, Reference.of(y)).value == pytest.approx(float(np.asarray(expected)), rel=REL)

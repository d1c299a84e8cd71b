from __future__ import annotations

import pytest
import torch
from tests.scoring.random_weights import random_images

from isocost.scoring.paired import psnr, ssim


def test_psnr_and_ssim_are_torchmetrics(library):
    """Over the windows that lie wholly in the image: torchmetrics also averages over windows on a mirrored border."""
    functional = library("torchmetrics.functional.image")
    images, targets = random_images(3, 48, 64), random_images(3, 48, 64, seed=1)
    a, b = (torch.from_numpy(part).permute(0, 3, 1, 2).double() for part in (images, targets))
    every = {"data_range": 255.0, "reduction": "none"}
    expected = functional.peak_signal_noise_ratio(a, b, dim=(1, 2, 3), **every)
    assert psnr(images, targets) == pytest.approx(expected.numpy(), rel=1e-6)
    _, windows = functional.structural_similarity_index_measure(a, b, return_full_image=True, **every)
    expected = windows[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert ssim(images, targets) == pytest.approx(expected.numpy(), rel=1e-6)

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.scoring.random_weights import random_images

from isocost.scoring.inception import Inception, load_inception

SHARE = 1e-4  # of the largest


@pytest.fixture(scope="module")
def fid_tf(inception_file) -> Inception:
    return load_inception("fid-tf", inception_file)


def close(found: np.ndarray, expected: torch.Tensor) -> bool:
    wanted = expected.numpy().reshape(found.shape)
    return bool(np.abs(found - wanted).max() <= SHARE * np.abs(wanted).max())


@pytest.mark.parametrize(("height", "width"), [(64, 80), (299, 299), (400, 320)])
def test_fid_tf_is_torch_fidelitys_path_from_pixels_to_logits(library, inception_file, fid_tf, height, width):
    module = library("torch_fidelity.feature_extractor_inceptionv3")
    theirs = module.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased", "logits"], feature_extractor_weights_path=str(inception_file)
    )
    images = random_images(3, height, width)
    features, unbiased, logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert close(fid_tf(images), features)
    assert close(fid_tf.logits(images), unbiased)
    assert close(fid_tf.logits(images, bias=True), logits)


def test_the_network_is_pytorch_fids(library, inception_weights, fid_tf, monkeypatch):
    """On images of its own size and in our pixel range: pytorch-fid resizes, and scales pixels, in another way."""
    module = library("pytorch_fid.inception")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: inception_weights)
    theirs = module.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    images = random_images(2, 299, 299)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 128
    with torch.no_grad():
        assert close(fid_tf(images), theirs(pixels)[0])

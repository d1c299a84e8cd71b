from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.scoring.random_weights import random_images, random_weights

from isocost.errors import DataError, SpecError
from isocost.scoring.inception import Conv, Inception, InceptionV3, average, load_inception

# Recorded with the weights of `random_weights` on random_images(2, 40, 56). fid-tf: torch-fidelity 0.4.0's features,
# `logits_unbiased` and `logits`. fid-clean: Pillow's bicubic as clean-fid 0.1.35 calls it, then the network of
# pytorch-fid 0.3.0.
TF_FEATURES = [[0.641108, 0.25799906, 0.13790625, 0.000711468], [0.6962431, 0.24630052, 0.15563083, 0.001111783]]
TF_LOGITS = [[-1.4518855, 2.6099277, -0.16502276], [-1.4501269, 2.7411778, -0.35867953]]
TF_LOGITS_WITH_BIAS = [[-1.3977873, 2.5824604, -0.2601217], [-1.3960288, 2.7137105, -0.45377848]]
CLEAN_FEATURES = [[0.6454223, 0.278476, 0.15299642, 0.001008832], [0.6886156, 0.2767797, 0.16036329, 0.0]]

IMAGES = random_images(2, 40, 56)


@pytest.fixture(scope="module")
def fid_clean(inception_file) -> Inception:
    return load_inception("fid-clean", inception_file)


def test_it_has_the_tensors_of_the_published_file():
    with torch.device("meta"):
        network = InceptionV3()
    assert len(network.state_dict()) == 566
    assert sum(value.numel() for value in network.parameters()) == 23_850_960
    assert network.state_dict()["fc.weight"].shape == (1008, 2048)
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var"} <= network.state_dict().keys()


def test_features_are_those_of_torch_fidelity(fid_tf):
    features = fid_tf(IMAGES)
    assert features.shape == (2, fid_tf.dims) and features.dtype == np.float32
    np.testing.assert_allclose(features[:, :4], TF_FEATURES, atol=1e-4)


def test_features_after_a_clean_resize_are_those_of_clean_fid(fid_clean):
    np.testing.assert_allclose(fid_clean(IMAGES)[:, :4], CLEAN_FEATURES, atol=1e-4)


def test_logits_are_those_of_torch_fidelity(fid_tf):
    features = fid_tf(IMAGES)
    logits = fid_tf.classify(features)
    assert logits.shape == (2, 1008) and logits.dtype == np.float32
    np.testing.assert_allclose(logits[:, :3], TF_LOGITS, atol=1e-4)
    np.testing.assert_allclose(fid_tf.classify(features, bias=True)[:, :3], TF_LOGITS_WITH_BIAS, atol=1e-4)
    assert np.array_equal(fid_tf.logits(IMAGES), logits)


def test_an_image_does_not_depend_on_the_others(fid_tf):
    images = random_images(3, 24, 24)
    together = fid_tf(images)
    assert np.array_equal(fid_tf(images[2:]), together[2:])
    assert np.array_equal(fid_tf(images[::-1]), together[::-1])
    assert np.array_equal(fid_tf.classify(together[2:]), fid_tf.classify(together)[2:])


def test_the_number_of_threads_moves_no_bit(fid_tf, request):
    images, threads = random_images(3, 24, 24), torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)
    alone = fid_tf(images)
    torch.set_num_threads(3)
    assert np.array_equal(fid_tf(images), alone)


def test_folding_the_batch_norm_changes_nothing():
    layer = Conv(5, 7, 3).eval().requires_grad_(False)
    layer.load_state_dict(random_weights(layer.state_dict()))
    pixels = torch.rand(2, 5, 9, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.relu(layer.bn(layer.conv(pixels)))
    layer.fold()
    assert isinstance(layer.bn, torch.nn.Identity)
    torch.testing.assert_close(layer(pixels), expected, atol=1e-6, rtol=0)


def test_padding_does_not_count_in_an_average():
    pixels = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert average(pixels)[0, 0, 0, 0] == (0 + 1 + 3 + 4) / 4 and average(pixels)[0, 0, 1, 1] == 4


def test_its_identity_is_weights_and_preprocessing(fid_tf, fid_clean, inception_file, tmp_path):
    assert (fid_tf.name, fid_clean.name) == ("fid-tf", "fid-clean")
    assert fid_tf.digest != fid_clean.digest
    tensors = load_file(inception_file)
    torch.save({name: value for name, value in tensors.items() if "num_batches" not in name}, tmp_path / "copy.pth")
    assert load_inception("fid-tf", tmp_path / "copy.pth").digest == fid_tf.digest
    tensors["fc.bias"][0] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    assert load_inception("fid-tf", tmp_path / "other.safetensors").digest != fid_tf.digest


def test_bad_names_files_and_images_are_refused(fid_tf, tmp_path):
    save_file({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.safetensors")
    with pytest.raises(DataError, match=r"torchvision\.safetensors: lacks 'Conv2d_1a_3x3\.conv\.weight'"):
        load_inception("fid-tf", tmp_path / "torchvision.safetensors")
    with pytest.raises(SpecError, match="unknown Inception extractor 'fid'"):
        load_inception("fid", tmp_path / "torchvision.safetensors")
    with pytest.raises(DataError, match=r"expected uint8 \[N, H, W, 3\]"):
        fid_tf(IMAGES.astype(np.float32))

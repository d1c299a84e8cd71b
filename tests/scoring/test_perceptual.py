from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.scoring.random_weights import random_images, random_weights

from isocost.errors import DataError, SpecError
from isocost.scoring.perceptual import NETS, Lpips, LpipsNetwork, load_lpips

# Recorded from lpips 0.1.4 with the weights of `random_weights`.
RECORDED = {"alex": [0.10636486, 0.09681475], "vgg": [0.09874923, 0.08759733]}

IMAGES, TARGETS = random_images(2, 40, 56), random_images(2, 40, 56, seed=1)


@pytest.fixture(scope="module", params=NETS)
def files(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """A net, and its trunk and heads in files like the published ones: the trunk's has a classifier too."""
    folder = tmp_path_factory.mktemp(request.param)
    with torch.device("meta"):
        network = LpipsNetwork(NETS[request.param])
    trunk, heads = random_weights(network.trunk.state_dict()), random_weights(network.heads.state_dict())
    save_file({**trunk, "classifier.1.bias": torch.zeros(4096)}, folder / "trunk.safetensors")
    torch.save(heads, folder / "heads.pth")
    return request.param, folder / "trunk.safetensors", folder / "heads.pth"


@pytest.fixture(scope="module")
def lpips(files) -> Lpips:
    return load_lpips(*files)


def test_tensors_are_those_of_the_published_files():
    with torch.device("meta"):
        alex, vgg = (LpipsNetwork(NETS[name]) for name in ("alex", "vgg"))
    convolutions = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
    for name, network in (("alex", alex), ("vgg", vgg)):
        expected = {f"features.{n}.{kind}" for n in convolutions[name] for kind in ("weight", "bias")}
        assert network.trunk.state_dict().keys() == expected
        assert network.heads.state_dict().keys() == {f"lin{k}.model.1.weight" for k in range(5)}
    assert sum(value.numel() for value in alex.trunk.parameters()) == 2_469_696
    assert sum(value.numel() for value in vgg.trunk.parameters()) == 14_714_688
    assert sum(value.numel() for value in alex.heads.parameters()) == 1152


def test_distances_are_those_of_the_authors(lpips):
    distances = lpips(IMAGES, TARGETS)
    assert distances.shape == (2,) and distances.dtype == np.float32
    np.testing.assert_allclose(distances, RECORDED[lpips.name.removeprefix("lpips-")], atol=1e-5)


def test_an_image_is_at_0_from_itself_and_farther_the_coarser_its_levels(lpips):
    distances = [lpips(IMAGES, IMAGES // step * step).mean() for step in (1, 8, 32, 128)]
    assert distances[0] == 0 and all(np.diff(distances) > 0)
    np.testing.assert_allclose(lpips(TARGETS, IMAGES), lpips(IMAGES, TARGETS), rtol=1e-5)


def test_an_image_does_not_depend_on_the_others(lpips):
    images, targets = random_images(5, 33, 32), random_images(5, 33, 32, seed=1)
    together = lpips(images, targets)
    assert np.array_equal(lpips(images[3:4], targets[3:4]), together[3:4])


def test_its_identity_is_both_files(files, lpips, tmp_path):
    net, trunk, heads = files
    tensors = load_file(trunk)
    tensors["features.0.bias"][0] += 1
    save_file(tensors, tmp_path / "trunk.safetensors")
    others = torch.load(heads, weights_only=True)
    others["lin4.model.1.weight"] *= 2
    torch.save(others, tmp_path / "heads.pth")
    digests = {load_lpips(net, t, h).digest for t in (trunk, tmp_path / "trunk.safetensors") for h in (heads,)}
    assert len(digests | {load_lpips(net, trunk, tmp_path / "heads.pth").digest}) == 3
    assert lpips.digest in digests and lpips.name == f"lpips-{net}"


def test_there_is_no_distance_without_both_files(files, monkeypatch, tmp_path):
    for variable in ("HOME", "TORCH_HOME", "ISOCOST_WEIGHTS"):
        monkeypatch.setenv(variable, str(tmp_path))
    net, trunk, heads = files
    with pytest.raises(DataError, match=r"(alexnet-owt|vgg16)-\w+\.pth: not found in .* curl .*pytorch\.org"):
        load_lpips(net, heads=heads)
    with pytest.raises(DataError, match=r"lpips-v0\.1-(alex|vgg)\.pth: not found in .* curl .*PerceptualSimilarity"):
        load_lpips(net, trunk)
    with pytest.raises(DataError, match=r"trunk\.safetensors: lacks 'lin0\.model\.1\.weight'"):
        load_lpips(net, trunk, trunk)
    with pytest.raises(DataError, match=r"heads\.pth: lacks 'features\.0\.weight'"):
        load_lpips(net, heads, heads)
    with pytest.raises(SpecError, match=r"unknown LPIPS network 'alexnet'\. Did you mean 'alex'"):
        load_lpips("alexnet", trunk, heads)


def test_pairs_that_cannot_be_compared_are_refused(lpips):
    with pytest.raises(DataError, match=r"images \[2, 40, 56, 3\] and targets \[1, 40, 56, 3\] do not pair up"):
        lpips(IMAGES, TARGETS[:1])
    with pytest.raises(DataError, match="images of 40 x 31 pixels: LPIPS needs at least 32 a side"):
        lpips(random_images(1, 31, 40), random_images(1, 31, 40))
    with pytest.raises(DataError, match=r"expected uint8"):
        lpips(IMAGES, TARGETS.astype(np.float32))

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.scoring.random_weights import random_images, random_weights

from isocost.scoring.perceptual import load_lpips


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_authors(library, net, tmp_path, monkeypatch):
    """The heads that their package holds, on random trunks."""
    package = library("lpips")
    models = library("torchvision.models")
    build = models.alexnet if net == "alex" else models.vgg16
    with torch.device("meta"):
        shapes = {name: value for name, value in build().state_dict().items() if name.startswith("features.")}
    trunk = random_weights(shapes)
    torch.save(trunk, tmp_path / "trunk.pth")
    heads = Path(package.__file__).parent / "weights" / "v0.1" / f"{net}.pth"

    theirs = package.LPIPS(net=net, pnet_rand=True, model_path=str(heads), verbose=False).eval()
    layers = [layer for part in range(1, 6) for layer in getattr(theirs.net, f"slice{part}").named_children()]
    for name, layer in layers:
        if f"features.{name}.weight" in trunk:
            layer.weight.data, layer.bias.data = (trunk[f"features.{name}.{kind}"] for kind in ("weight", "bias"))
    ours = load_lpips(net, tmp_path / "trunk.pth", heads)

    images, targets = random_images(3, 64, 80), random_images(3, 64, 80, seed=1)
    a, b = (torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1 for part in (images, targets))
    with torch.no_grad():
        expected = theirs(a, b).flatten().numpy()
    assert ours(images, targets) == pytest.approx(expected, rel=1e-5)
    assert expected.min() > 0.01

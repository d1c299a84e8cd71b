"""LPIPS v0.1, the learned perceptual distance of two images (arXiv 1801.03924), on AlexNet or VGG-16.

A trunk is torchvision's file of ImageNet weights (`features.N.*`), the heads the authors' file of one weight a channel
(`linK.model.1.weight`). Neither has a stand-in: without its weights there is no distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from isocost.encoders.inputs import in_fixed_batches
from isocost.encoders.weights import content_digest
from isocost.errors import DataError, lookup
from isocost.scoring.extractors import check_images
from isocost.scoring.weights import Published, fill

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1], by channel
EPS = 1e-10  # added to a feature's length
SMALLEST = 32  # pixels a side: below, nothing is left of an image at AlexNet's last layers
PIXELS_A_CALL = {"cpu": 2**14, "cuda": 2**22}
HEADS_URL = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)]


def alexnet() -> nn.Sequential:
    """torchvision's `alexnet().features`, but for the last pool."""
    first = [*_conv(3, 64, 11, stride=4, padding=2), nn.MaxPool2d(3, stride=2)]
    second = [*_conv(64, 192, 5, padding=2), nn.MaxPool2d(3, stride=2)]
    return nn.Sequential(*first, *second, *_conv(192, 384), *_conv(384, 256), *_conv(256, 256))


def vgg16() -> nn.Sequential:
    """torchvision's `vgg16().features`, but for the last pool."""
    layers: list[nn.Module] = []
    inputs = 3
    for depth, outputs in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(depth):
            layers += _conv(inputs, outputs)
            inputs = outputs
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Net:
    """A trunk, after how many layers it is compared (five times), how wide it is there, and the files of weights."""

    trunk: Callable[[], nn.Sequential]
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    trunk_weights: Published
    head_weights: Published


NETS = {
    "alex": Net(
        alexnet,
        taps=(2, 5, 8, 10, 12),
        channels=(64, 192, 384, 256, 256),
        trunk_weights=Published(
            ("alexnet-owt-7be5be79.pth",),
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        ),
        head_weights=Published(
            ("lpips-v0.1-alex.pth",),
            "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
            f"{HEADS_URL}/alex.pth",
        ),
    ),
    "vgg": Net(
        vgg16,
        taps=(4, 9, 16, 23, 30),
        channels=(64, 128, 256, 512, 512),
        trunk_weights=Published(
            ("vgg16-397923af.pth",),
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
        ),
        head_weights=Published(
            ("lpips-v0.1-vgg.pth",),
            "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
            f"{HEADS_URL}/vgg.pth",
        ),
    ),
}


class Head(nn.Module):
    """One weight a channel; the dropout is that of its training."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, differences: torch.Tensor) -> torch.Tensor:
        return self.model(differences)


class LpipsNetwork(nn.Module):
    """Names inside `trunk` and `heads` are those of the published files."""

    def __init__(self, net: Net):
        super().__init__()
        self.taps = net.taps
        self.trunk = nn.ModuleDict({"features": net.trunk()})
        self.heads = nn.ModuleDict({f"lin{place}": Head(channels) for place, channels in enumerate(net.channels)})

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images and, after them, as many targets [2 N, 3, H, W], of 0 to 255 -> distances [N] (eq. 1)."""
        shift, scale = (pixels.new_tensor(value)[:, None, None] for value in (SHIFT, SCALE))
        x = (pixels / 127.5 - 1 - shift) / scale
        layers = list(self.trunk["features"].children())
        distances = []
        for (start, end), head in zip(pairwise((0, *self.taps)), self.heads.values(), strict=True):
            for layer in layers[start:end]:
                x = layer(x)
            images, targets = (x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPS)).chunk(2)
            distances.append(head((images - targets).square()).mean(dim=(1, 2, 3)))
        return torch.stack(distances).sum(dim=0)


class Lpips:
    """Distances of images to their targets, 0 for equal ones. digest: of both files' weights and the preprocessing."""

    def __init__(self, name: str, network: LpipsNetwork, device: str = "cpu"):
        self.name = name
        self.device = torch.device(device)
        identity = {"network": name, "version": "0.1", "input": [SHIFT, SCALE]}
        self.digest = content_digest(identity, network)
        self._network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] and their targets, the same shape -> float32 [N]. Raises `DataError` for other arrays."""
        images, targets = check_images(images), check_images(targets)
        if images.shape != targets.shape:
            raise DataError(f"images {list(images.shape)} and targets {list(targets.shape)} do not pair up.")
        height, width = images.shape[1:3]
        if min(height, width) < SMALLEST:
            raise DataError(f"images of {width} x {height} pixels: LPIPS needs at least {SMALLEST} a side.")
        pairs = torch.from_numpy(np.concatenate([images, targets], axis=3))
        kind = self.device.type
        return in_fixed_batches(self._forward, pairs, max(1, PIXELS_A_CALL[kind] // (height * width)), kind == "cpu")

    def _forward(self, pairs: torch.Tensor) -> torch.Tensor:
        pixels = torch.cat(pairs.to(self.device).permute(0, 3, 1, 2).float().chunk(2, dim=1))
        return self._network(pixels.contiguous(memory_format=torch.channels_last))


def load_lpips(
    net: str, trunk: str | Path | None = None, heads: str | Path | None = None, device: str = "cpu"
) -> Lpips:
    """`alex` or `vgg`. Weights not given are looked for under their published names (`weights.folders`).

    Raises `SpecError` for another net, `DataError` that says where it looked and what to do, or what does not fit.
    """
    known = lookup(NETS, net, "LPIPS network")
    trunk_path, trunk_tensors = known.trunk_weights.read(trunk)
    heads_path, head_tensors = known.head_weights.read(heads)
    with torch.device("meta"):
        network = LpipsNetwork(known)
    features = {name: value for name, value in trunk_tensors.items() if name.startswith("features.")}
    fill(network.trunk, features, trunk_path)
    fill(network.heads, head_tensors, heads_path)
    return Lpips(f"lpips-{net}", network, device)

